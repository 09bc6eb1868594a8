//! One owner of the state. Requests are closures that it runs one after the other; what a batch of them changes is one
//! transaction, and only after that is stored are callers answered and workers told.

mod batch;
mod effects;
mod jobs;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Result, SharedClock, Term, WorkerId, code};
use pleach_proto::v1::{self, SessionResponse};
use pleach_sched::invariants::Auditor;
use pleach_sched::{Event, JobKey, Settings, State};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::DropGuard;
use tonic::Status;

use crate::config::Config;
use crate::db::{Db, JobRecord, Stored};
use crate::view;
use crate::watch::View;
use batch::Batch;
use workers::Reports;

pub(crate) use jobs::Overview;

/// Requests that wait; callers beyond them wait too.
const WAITING: usize = 1024;
/// Requests that share a transaction.
const BATCH: usize = 64;
/// Rows of the step log and lines of logs, which nobody waits for, are on the disk after this time.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// More updates of a job than are made between two syncs.
const LOST_AT_MOST: u64 = 1 << 20;

/// Reason of a shutdown that the actor requests.
pub(crate) const CANNOT_STORE: &str = "the coordinator's state cannot be stored";

type Task = Box<dyn FnOnce(&mut Actor) + Send>;
pub(crate) type Orders = mpsc::Sender<std::result::Result<SessionResponse, Status>>;

/// The way to the actor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle(mpsc::Sender<Task>);

impl Handle {
    /// Runs `f` in the actor; the answer comes when everything that `f` changed is stored.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Actor) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |actor| {
            let result = f(actor);
            // The caller may have hung up.
            actor.batch.then(move || drop(reply.send(result)));
        });
        self.0.send(task).await.map_err(|_| going_down())?;
        answer.await.map_err(|_| going_down())?
    }

    /// Runs `f` in the actor; says whether the actor still works.
    pub(crate) async fn tell(&self, f: impl FnOnce(&mut Actor) + Send + 'static) -> bool {
        self.0.send(Box::new(f)).await.is_ok()
    }
}

fn going_down() -> Error {
    code::UNREACHABLE.error("the coordinator is going down")
}

/// A job, as kept in memory.
struct Entry {
    record: JobRecord,
    tasks: Vec<v1::TaskStatus>,
    first_seq: u64,
    last_seq: u64,
    views: watch::Sender<Arc<View>>,
}

impl Entry {
    fn new(stored: Stored) -> Self {
        let Stored { key, record, tasks, first_seq, last_seq } = stored;
        let job = view::job(&key, &record, &tasks, last_seq);
        let view = View { job, ended: record.sched.state.is_terminal() };
        Self { record, tasks, first_seq, last_seq, views: watch::channel(Arc::new(view)).0 }
    }

    fn job(&self, key: &JobKey) -> v1::Job {
        view::job(key, &self.record, &self.tasks, self.last_seq)
    }
}

struct Session {
    number: u64,
    orders: Orders,
    /// Ends the reader of the session with it.
    _guard: DropGuard,
}

/// The owner of all state.
pub(crate) struct Actor {
    db: Arc<Db>,
    clock: SharedClock,
    kept_updates: u64,
    state: State,
    auditor: Auditor,
    entries: BTreeMap<JobKey, Entry>,
    sessions: BTreeMap<WorkerId, Session>,
    sessions_opened: u64,
    reports: BTreeMap<WorkerId, Reports>,
    batch: Batch,
    /// When everything was last brought to the disk, and whether something was written since.
    synced_at: Duration,
    unsynced: bool,
}

impl Actor {
    /// Loads what is stored and begins a new term.
    ///
    /// # Errors
    /// `IO`, `STATE_CORRUPT`.
    pub(crate) fn load(config: &Config, db: Arc<Db>) -> Result<Self> {
        let (term, clean) = db.take_term(config.clock.now())?;
        let mut stored = db.load()?;
        if !clean {
            // Watchers may have seen numbers that did not reach the disk: those are not given out again.
            stored.iter_mut().for_each(|stored| stored.last_seq += LOST_AT_MOST);
        }
        let jobs: Vec<_> = stored.iter().map(|stored| (stored.key.clone(), stored.record.sched.clone())).collect();
        let state = State::recover(term, config.settings.clone(), jobs);
        let mut actor = Self {
            db,
            clock: Arc::clone(&config.clock),
            kept_updates: config.kept_updates.max(1),
            state,
            auditor: Auditor::default(),
            entries: stored.into_iter().map(|stored| (stored.key.clone(), Entry::new(stored))).collect(),
            sessions: BTreeMap::new(),
            sessions_opened: 0,
            reports: BTreeMap::new(),
            batch: Batch::default(),
            synced_at: config.clock.elapsed(),
            unsynced: false,
        };
        actor.note_recovery();
        actor.flush()?;
        Ok(actor)
    }

    /// Writes down what the new term made of the stored jobs.
    fn note_recovery(&mut self) {
        let keys: Vec<_> = self.entries.keys().cloned().collect();
        for key in keys {
            let changed = self.state.jobs.get(&key) != self.entries.get(&key).map(|entry| &entry.record.sched);
            if changed {
                let reason = self.state.jobs.get(&key).map(|job| job.reason.clone()).unwrap_or_default();
                self.job_changed(&key);
                self.append_event(&key, "CoordinatorRestarted", reason, "");
            }
        }
    }

    /// Works until `tasks` ends or the state cannot be stored.
    pub(crate) fn run(mut self, mut tasks: mpsc::Receiver<Task>, shutdown: &Shutdown) {
        while let Some(task) = tasks.blocking_recv() {
            if shutdown.is_requested() {
                if let Err(error) = self.db.close() {
                    tracing::error!(error = %error.chain(), "the state was not closed in order");
                }
                break;
            }
            task(&mut self);
            for _ in 1..BATCH {
                let Ok(task) = tasks.try_recv() else { break };
                task(&mut self);
            }
            if let Err(error) = self.flush() {
                // Nobody was answered: what is not stored has not happened.
                tracing::error!(error = %error.chain(), "{CANNOT_STORE}");
                shutdown.request(CANNOT_STORE);
                break;
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        self.apply(Event::Tick);
        if self.unsynced && self.sync_is_due() {
            self.batch.durable();
        }
    }

    fn sync_is_due(&self) -> bool {
        self.now() >= self.synced_at + SYNC_EVERY
    }

    pub(crate) fn term(&self) -> Term {
        self.state.term
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.state.settings
    }

    fn now(&self) -> Duration {
        self.clock.elapsed()
    }
}

/// A channel for an actor.
pub(crate) fn channel() -> (Handle, mpsc::Receiver<Task>) {
    let (send, receive) = mpsc::channel(WAITING);
    (Handle(send), receive)
}
