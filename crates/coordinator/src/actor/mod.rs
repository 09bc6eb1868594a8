//! One owner of the state. Requests are closures that it runs one after the other; what a batch of them changes is one
//! transaction, and only after that is stored are callers answered and workers told.

mod batch;
mod effects;
mod jobs;
mod seat;
mod times;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Result, SharedClock, TaskName, Term, WorkerId, code};
use pleach_proto::v1::{self, SessionResponse};
use pleach_sched::invariants::Auditor;
use pleach_sched::{Event, JobKey, Settings, State};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::DropGuard;
use tonic::Status;

use crate::config::Config;
use crate::db::{Backend, JobRecord, Stored};
use crate::view;
use crate::watch::View;
use batch::Batch;
use times::Profile;
use workers::Reports;

pub(crate) use jobs::Overview;
pub(crate) use seat::{Handle, Role, Seat, Task, channel};

/// Requests that share a transaction.
const BATCH: usize = 256;
/// Rows of the step log and lines of logs, which nobody waits for, are on the disk after this time.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Events that are kept of a job.
const KEPT_EVENTS: usize = 2_000;

/// Reason of a shutdown that the actor requests.
pub(crate) const CANNOT_STORE: &str = "the coordinator's state cannot be stored";

pub(crate) type Orders = mpsc::Sender<std::result::Result<SessionResponse, Status>>;

/// A job, as kept in memory.
struct Entry {
    record: JobRecord,
    tasks: Vec<v1::TaskStatus>,
    first_seq: u64,
    last_seq: u64,
    /// Numbers up to this one were noted as given out.
    reserved: u64,
    /// Numbers of the kept events.
    events: VecDeque<u64>,
    /// The oldest kept record of each task.
    oldest: BTreeMap<TaskName, u64>,
    profile: Profile,
    views: watch::Sender<Arc<View>>,
}

impl Entry {
    fn new(stored: Stored) -> Self {
        let Stored { key, record, tasks, first_seq, last_seq, reserved, events, oldest } = stored;
        let job = view::job(&key, &record, &tasks, last_seq);
        let view = View { job, ended: record.sched.state.is_terminal() };
        let views = watch::channel(Arc::new(view)).0;
        let profile = Profile::default();
        Self { record, tasks, first_seq, last_seq, reserved, events, oldest, profile, views }
    }

    fn job(&self, key: &JobKey) -> v1::Job {
        view::job(key, &self.record, &self.tasks, self.last_seq)
    }

    /// Shows watchers what is current.
    fn show(&self, key: &JobKey) {
        let view = View { job: self.job(key), ended: self.record.sched.state.is_terminal() };
        self.views.send_replace(Arc::new(view));
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
    db: Arc<dyn Backend>,
    clock: SharedClock,
    kept_updates: u64,
    state: State,
    auditor: Auditor,
    entries: BTreeMap<JobKey, Entry>,
    sessions: BTreeMap<WorkerId, Session>,
    sessions_opened: u64,
    reports: BTreeMap<WorkerId, Reports>,
    /// Records of the report that is being taken: the scheduler says which of them count.
    told: Vec<v1::CommitRecord>,
    batch: Batch,
    /// Something was heard in this batch after which all workers and jobs are to be looked at.
    unsettled: bool,
    /// When everything was last brought to the disk, and whether something was written since.
    synced_at: Duration,
    unsynced: bool,
    /// When this process last looked.
    awake_at: Duration,
}

/// How an actor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Shutdown,
    /// The state cannot be stored.
    CannotStore,
    /// Another process leads.
    SteppedDown,
}

impl Actor {
    /// Loads what is stored and begins `term`. `clean` says that the leader before ended in order.
    ///
    /// # Errors
    /// `IO`, `STATE_CORRUPT`, `NOT_LEADER`.
    pub(crate) fn load(config: &Config, db: Arc<dyn Backend>, term: Term, clean: bool) -> Result<Self> {
        let mut stored = db.load()?;
        if !clean {
            // Watchers may have seen numbers that did not reach the disk: those are not given out again.
            stored.iter_mut().for_each(|stored| stored.last_seq = stored.last_seq.max(stored.reserved));
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
            told: Vec::new(),
            batch: Batch::default(),
            unsettled: false,
            synced_at: config.clock.elapsed(),
            unsynced: false,
            awake_at: config.clock.elapsed(),
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

    /// Works until `tasks` ends, the state cannot be stored, or another process leads.
    pub(crate) fn run(mut self, mut tasks: mpsc::Receiver<Task>, shutdown: &Shutdown) -> Ended {
        while let Some(task) = tasks.blocking_recv() {
            if shutdown.is_requested() {
                if let Err(error) = self.db.close() {
                    tracing::error!(error = %error.chain(), "the state was not closed in order");
                }
                break;
            }
            self.wake();
            task(&mut self);
            for _ in 1..BATCH {
                let Ok(task) = tasks.try_recv() else { break };
                task(&mut self);
            }
            self.settle();
            if let Err(error) = self.flush() {
                // Nobody was answered: what is not stored has not happened.
                if error.code() == code::NOT_LEADER {
                    tracing::warn!(error = %error.chain(), "stepping down");
                    return Ended::SteppedDown;
                }
                tracing::error!(error = %error.chain(), "{CANNOT_STORE}");
                shutdown.request(CANNOT_STORE);
                return Ended::CannotStore;
            }
        }
        Ended::Shutdown
    }

    /// While this process was stopped, or waited for its storage, nobody could be heard: that time counts for no worker.
    fn wake(&mut self) {
        let now = self.now();
        let away = now.saturating_sub(self.awake_at);
        self.awake_at = now;
        if away < self.state.settings.lease_ttl / 2 {
            return;
        }
        tracing::warn!(seconds = away.as_secs_f64(), "this coordinator was away; all leases are renewed");
        for worker in self.state.workers.values_mut() {
            worker.heard_at = now;
            worker.progress_at = now;
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
