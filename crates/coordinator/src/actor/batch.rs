//! What the requests of one batch changed, and what is to be said once that is stored.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleach_base::{Result, WorkerId};
use pleach_proto::v1::session_response::Message;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, SessionResponse, WatchJobResponse};
use pleach_sched::JobKey;

use super::Actor;
use crate::db::Changes;
use crate::view;
use crate::watch::View;

/// Something to say after the transaction.
enum Then {
    Answer(Box<dyn FnOnce() + Send>),
    Order(WorkerId, Box<SessionResponse>),
    Close(WorkerId),
}

/// One batch.
#[derive(Default)]
pub(crate) struct Batch {
    jobs: BTreeSet<JobKey>,
    progress: BTreeSet<JobKey>,
    updates: Vec<(JobKey, u64, WatchJobResponse)>,
    forgotten: Vec<JobKey>,
    durable: bool,
    then: Vec<Then>,
}

impl Batch {
    /// Says something once the batch is stored.
    pub(crate) fn then(&mut self, f: impl FnOnce() + Send + 'static) {
        self.then.push(Then::Answer(Box::new(f)));
    }

    pub(super) fn order(&mut self, worker: &WorkerId, message: Message) {
        self.then.push(Then::Order(worker.clone(), Box::new(SessionResponse { message: Some(message) })));
    }

    pub(super) fn close(&mut self, worker: WorkerId) {
        self.then.push(Then::Close(worker));
    }

    pub(super) fn job(&mut self, key: &JobKey) {
        self.jobs.insert(key.clone());
        self.durable = true;
    }

    pub(super) fn progress(&mut self, key: &JobKey) {
        self.progress.insert(key.clone());
    }

    pub(super) fn durable(&mut self) {
        self.durable = true;
    }

    pub(super) fn forget(&mut self, key: &JobKey) {
        self.jobs.remove(key);
        self.progress.remove(key);
        self.updates.retain(|(of, ..)| of != key);
        self.forgotten.push(key.clone());
        self.durable = true;
    }
}

impl Actor {
    /// Adds an update to a job's history.
    pub(super) fn append(&mut self, key: &JobKey, update: Update) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.last_seq += 1;
        let update = WatchJobResponse { seq: entry.last_seq, update: Some(update) };
        self.batch.updates.push((key.clone(), entry.last_seq, update));
    }

    pub(super) fn append_event(&mut self, key: &JobKey, kind: &str, message: String, worker: &str) {
        let unix_ms = view::millis(self.clock.now().0);
        let event = v1::Event { unix_ms, kind: kind.to_owned(), message, worker: worker.to_owned() };
        self.append(key, Update::Event(event));
    }

    /// Copies what the scheduler changed about a job to its record.
    pub(super) fn job_changed(&mut self, key: &JobKey) {
        let now = self.clock.now().0;
        let (Some(entry), Some(job)) = (self.entries.get_mut(key), self.state.jobs.get(key)) else { return };
        entry.record.sched = job.clone();
        entry.record.updated_ms = now;
        self.batch.job(key);
    }

    /// Stores the batch, then says what is to be said.
    pub(super) fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let touched: BTreeSet<_> = batch
            .jobs
            .iter()
            .chain(&batch.progress)
            .chain(batch.updates.iter().map(|(key, ..)| key))
            .cloned()
            .collect();
        if !touched.is_empty() || batch.durable {
            let durable = batch.durable || self.sync_is_due();
            let changes = self.changes(&batch.jobs, &batch.progress, batch.updates, batch.forgotten, durable);
            self.db.write(&changes)?;
            self.unsynced = !durable;
            if durable {
                self.synced_at = self.now();
            }
        }
        for key in &touched {
            if let Some(entry) = self.entries.get(key) {
                let view = View { job: entry.job(key), ended: entry.record.sched.state.is_terminal() };
                entry.views.send_replace(Arc::new(view));
            }
        }
        for then in batch.then {
            self.say(then);
        }
        Ok(())
    }

    fn changes(
        &mut self,
        jobs: &BTreeSet<JobKey>,
        progress: &BTreeSet<JobKey>,
        updates: Vec<(JobKey, u64, WatchJobResponse)>,
        forgotten: Vec<JobKey>,
        durable: bool,
    ) -> Changes {
        let mut trims = Vec::new();
        let slack = self.kept_updates / 10;
        for key in updates.iter().map(|(key, ..)| key).collect::<BTreeSet<_>>() {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let kept = entry.last_seq + 1 - entry.first_seq;
            if kept > self.kept_updates + slack {
                entry.first_seq = entry.last_seq + 1 - self.kept_updates;
                trims.push((key.clone(), entry.first_seq));
            }
        }
        let of = |key: &JobKey| self.entries.get(key);
        Changes {
            jobs: jobs.iter().filter_map(|key| Some((key.clone(), of(key)?.record.clone()))).collect(),
            progress: progress.iter().filter_map(|key| Some((key.clone(), of(key)?.tasks.clone()))).collect(),
            updates,
            trims,
            forgotten,
            durable,
        }
    }

    fn say(&mut self, then: Then) {
        match then {
            Then::Answer(answer) => answer(),
            Then::Close(worker) => {
                self.sessions.remove(&worker);
            }
            Then::Order(worker, order) => {
                let Some(session) = self.sessions.get(&worker) else { return };
                // A worker that does not read is cut off; it comes back, and gets what is current then.
                if session.orders.try_send(Ok(*order)).is_err() {
                    tracing::warn!(%worker, "the session is full or broken; closing it");
                    self.sessions.remove(&worker);
                }
            }
        }
    }
}
