//! What the requests of one batch changed, and what is to be said once that is stored.

use std::collections::BTreeSet;

use pleach_base::{Result, WorkerId};
use pleach_proto::v1::session_response::Message;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, SessionResponse, WatchJobResponse};
use pleach_sched::JobKey;

use super::{Actor, KEPT_EVENTS};
use crate::db::{Changes, Progress};
use crate::view;

/// Numbers of updates are noted as given out so many at a time.
const RESERVED: u64 = 1024;
/// Records that are kept per task, whatever the store holds.
const KEPT_COMMITS: u64 = 4096;
/// Old events and records are dropped so many at a time.
const SLACK: usize = 256;

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
    commits: Vec<(JobKey, v1::CommitRecord)>,
    forgotten: Vec<JobKey>,
    durable: bool,
    /// Workers whose heartbeats are to be acknowledged: those wait for nothing that is stored.
    acks: Vec<WorkerId>,
    then: Vec<Then>,
}

impl Batch {
    /// Says something once the batch is stored.
    pub(crate) fn then(&mut self, f: impl FnOnce() + Send + 'static) {
        self.then.push(Then::Answer(Box::new(f)));
    }

    pub(super) fn ack(&mut self, worker: &WorkerId) {
        self.acks.push(worker.clone());
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

    pub(super) fn commit(&mut self, key: &JobKey, record: v1::CommitRecord) {
        self.commits.push((key.clone(), record));
        self.durable = true;
    }

    pub(super) fn durable(&mut self) {
        self.durable = true;
    }

    pub(super) fn forget(&mut self, key: &JobKey) {
        self.jobs.remove(key);
        self.progress.remove(key);
        self.updates.retain(|(of, ..)| of != key);
        self.commits.retain(|(of, _)| of != key);
        self.forgotten.push(key.clone());
        self.durable = true;
    }
}

impl Actor {
    /// Adds an update to a job's history.
    pub(super) fn append(&mut self, key: &JobKey, update: Update) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.last_seq += 1;
        if entry.last_seq > entry.reserved {
            entry.reserved = entry.last_seq + RESERVED;
            self.batch.progress(key);
            self.batch.durable();
        }
        if let Update::Event(_) = &update {
            entry.events.push_back(entry.last_seq);
        }
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

    /// Writes down that steps were recorded.
    pub(super) fn committed(&mut self, key: &JobKey, records: Vec<v1::CommitRecord>) {
        let (Some(entry), Some(job)) = (self.entries.get_mut(key), self.state.jobs.get(key)) else { return };
        entry.record.sched.heads.clone_from(&job.heads);
        for record in records {
            let oldest = entry.oldest.entry(record.task.as_str().into()).or_insert(record.step);
            *oldest = record.step.min(*oldest);
            self.batch.commit(key, record);
        }
    }

    /// Stores the batch, then says what is to be said.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.db.confirm()?;
        let mut batch = std::mem::take(&mut self.batch);
        for worker in std::mem::take(&mut batch.acks) {
            let ack = v1::HeartbeatAck { term: self.term().0 };
            self.send(&worker, SessionResponse { message: Some(Message::Ack(ack)) });
        }
        let touched: BTreeSet<_> = batch
            .jobs
            .iter()
            .chain(&batch.progress)
            .chain(batch.updates.iter().map(|(key, ..)| key))
            .chain(batch.commits.iter().map(|(key, _)| key))
            .cloned()
            .collect();
        if !touched.is_empty() || batch.durable {
            let durable = batch.durable || self.sync_is_due();
            let then = std::mem::take(&mut batch.then);
            let changes = self.changes(batch, &touched, durable);
            self.db.write(changes)?;
            batch = Batch { then, ..Batch::default() };
            self.unsynced = !durable;
            if durable {
                self.synced_at = self.now();
            }
        }
        for key in &touched {
            // Most jobs have no watcher; one that comes is shown what is current then.
            if let Some(entry) = self.entries.get(key).filter(|entry| entry.views.receiver_count() > 0) {
                entry.show(key);
            }
        }
        for then in batch.then {
            self.say(then);
        }
        Ok(())
    }

    fn changes(&mut self, batch: Batch, touched: &BTreeSet<JobKey>, durable: bool) -> Changes {
        let mut changes = Changes {
            updates: batch.updates,
            commits: batch.commits,
            forgotten: batch.forgotten,
            durable,
            ..Changes::default()
        };
        for key in touched {
            self.trim(key, &mut changes);
        }
        let of = |key: &JobKey| self.entries.get(key);
        let jobs = batch.jobs.iter();
        changes.jobs = jobs.filter_map(|key| Some((key.clone(), of(key)?.record.clone()))).collect();
        let progress = batch.progress.iter();
        let progress = progress.filter_map(|key| {
            let entry = of(key)?;
            Some((key.clone(), Progress { tasks: entry.tasks.clone(), reserved: entry.reserved }))
        });
        changes.progress = progress.collect();
        changes
    }

    /// Drops what is beyond the limits of a job.
    fn trim(&mut self, key: &JobKey, changes: &mut Changes) {
        let kept_updates = self.kept_updates;
        let Some(entry) = self.entries.get_mut(key) else { return };
        let kept = entry.last_seq + 1 - entry.first_seq;
        if kept > kept_updates + kept_updates / 10 {
            entry.first_seq = entry.last_seq + 1 - kept_updates;
            changes.trims.push((key.clone(), entry.first_seq));
        }
        if entry.events.len() > KEPT_EVENTS + SLACK {
            entry.events.drain(..entry.events.len() - KEPT_EVENTS);
            changes.event_trims.extend(entry.events.front().map(|first| (key.clone(), *first)));
        }
        for (name, head) in &entry.record.sched.heads {
            let durable =
                entry.tasks.iter().find(|task| task.name == name.as_str()).map_or(0, |task| task.durable_step);
            let keep = (durable + 1).min((head.step().0 + 1).saturating_sub(KEPT_COMMITS));
            let Some(oldest) = entry.oldest.get_mut(name) else { continue };
            if *oldest + SLACK as u64 <= keep {
                *oldest = keep;
                changes.commit_trims.push((key.clone(), name.clone(), keep));
            }
        }
    }

    fn say(&mut self, then: Then) {
        match then {
            Then::Answer(answer) => answer(),
            Then::Close(worker) => {
                self.sessions.remove(&worker);
            }
            Then::Order(worker, order) => self.send(&worker, *order),
        }
    }

    fn send(&mut self, worker: &WorkerId, order: SessionResponse) {
        let Some(session) = self.sessions.get(worker) else { return };
        // A worker that does not read is cut off; it comes back, and gets what is current then.
        if session.orders.try_send(Ok(order)).is_err() {
            tracing::warn!(%worker, "the session is full or broken; closing it");
            self.sessions.remove(worker);
        }
    }
}
