//! Uploading behind the training thread's back. Steps never wait for the store: a snapshot that comes while another
//! one is under way replaces whatever waits.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use pleach_base::{Error, Kind, Result, Step, code};

use crate::record::{LogEntry, Snapshot};
use crate::retain::Retention;
use crate::writer::Writer;

/// Called on the uploader's task after each step that became durable. Must not block.
pub type DurableHook = Box<dyn Fn(&LogEntry) + Send + Sync>;

/// Called on the uploader's task before the first object of a step is written. Must not block.
pub type BeginHook = Box<dyn Fn(Step) + Send + Sync>;

/// How an [`Uploader`] behaves.
#[derive(Default)]
pub struct UploaderOptions {
    /// Applied after each durable step.
    pub retention: Option<Retention>,
    /// Told about each upload that begins, also when it is tried again.
    pub on_begin: Option<BeginHook>,
    /// Told about each durable step.
    pub on_durable: Option<DurableHook>,
    /// The longest pause between tries while the store does not answer; 10 s when absent.
    pub longest_pause: Option<Duration>,
}

impl fmt::Debug for UploaderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploaderOptions").field("retention", &self.retention).finish_non_exhaustive()
    }
}

/// What an [`Uploader`] has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploaderStatus {
    /// The newest step that was handed in.
    pub submitted: Option<Step>,
    /// The newest step that is durable.
    pub durable: Option<Step>,
    /// Snapshots that a newer one replaced before they were uploaded.
    pub coalesced: u64,
    /// Why the store does not take the current snapshot, while it is tried again.
    pub trouble: Option<String>,
}

/// Uploads snapshots in the background, newest first. Dropping it ends the upload under way; call
/// [`Uploader::wait_idle`] before.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    work: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("status", &self.lock().status).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    pending: Option<Snapshot>,
    busy: bool,
    status: UploaderStatus,
    /// The error after which nothing is uploaded any more.
    ended: Option<Error>,
}

impl Uploader {
    /// Starts uploading with `writer` on the runtime of `handle`. The other methods may be called from any thread.
    #[must_use]
    pub fn start(writer: Writer, handle: &Handle, options: UploaderOptions) -> Self {
        let shared = Arc::new(Shared::default());
        let task = handle.spawn(run(writer, Arc::clone(&shared), options));
        Self { shared, task }
    }

    /// Hands in a snapshot; returns at once.
    ///
    /// # Errors
    /// What ended the uploads (`STORE_FENCED`, `STORE_DENIED`, ...): nothing becomes durable any more, stop training.
    pub fn submit(&self, snapshot: Snapshot) -> Result<()> {
        let mut state = self.shared.lock();
        state.check()?;
        state.status.submitted = Some(snapshot.step);
        if state.pending.replace(snapshot).is_some() {
            state.status.coalesced += 1;
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// The newest durable step of this uploader.
    #[must_use]
    pub fn durable_step(&self) -> Option<Step> {
        self.shared.lock().status.durable
    }

    /// Counters and trouble, for the step log.
    #[must_use]
    pub fn status(&self) -> UploaderStatus {
        self.shared.lock().status.clone()
    }

    /// Blocks until everything that was handed in is durable. Not for async code: it blocks its thread.
    ///
    /// # Errors
    /// What ended the uploads; `STORE_UNREACHABLE` with the last trouble when `limit` passes first.
    pub fn wait_idle(&self, limit: Duration) -> Result<()> {
        self.wait(limit, |state| state.pending.is_none() && !state.busy)
    }

    /// Blocks until `step`, or a newer one, is durable.
    ///
    /// # Errors
    /// As [`Uploader::wait_idle`].
    pub fn wait_durable(&self, step: Step, limit: Duration) -> Result<()> {
        self.wait(limit, |state| state.status.durable >= Some(step))
    }

    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> Result<()> {
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| state.ended.is_none() && !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        state.check()?;
        if done(&state) {
            return Ok(());
        }
        let why = state.status.trouble.clone().unwrap_or_else(|| "the store is slower than that".to_owned());
        Err(code::STORE_UNREACHABLE.error(format!("steps are not durable after {} s: {why}", limit.as_secs())))
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.ended {
            Some(error) => Err(again(error)),
            None => Ok(()),
        }
    }
}

/// The same error for each caller.
fn again(error: &Error) -> Error {
    error.code().error(error.chain()).maybe_hint(error.hint_text().map(str::to_owned))
}

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

async fn run(mut writer: Writer, shared: Arc<Shared>, options: UploaderOptions) {
    let longest = options.longest_pause.unwrap_or(LONGEST_PAUSE);
    let mut pause = FIRST_PAUSE.min(longest);
    loop {
        let Some(snapshot) = take(&shared) else {
            shared.work.notified().await;
            continue;
        };
        if let Some(hook) = &options.on_begin {
            hook(snapshot.step);
        }
        match writer.commit(&snapshot).await {
            Ok(entry) => {
                pause = FIRST_PAUSE.min(longest);
                if let Some(hook) = &options.on_durable {
                    hook(&entry);
                }
                let ended = retain(&mut writer, options.retention.as_ref()).await;
                settle(&shared, &entry, ended);
            }
            Err(error) if passes(&error) => {
                tracing::warn!(step = %snapshot.step, error = %error.chain(), "the store does not take the step, trying again");
                give_back(&shared, snapshot, &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            Err(error) => shared.update(|state| {
                state.busy = false;
                state.ended = Some(error);
            }),
        }
        if shared.lock().ended.is_some() {
            return;
        }
    }
}

fn take(shared: &Shared) -> Option<Snapshot> {
    let mut state = shared.lock();
    let snapshot = state.pending.take();
    state.busy = snapshot.is_some();
    snapshot
}

/// Puts a snapshot that was not taken back, unless a newer one has come.
fn give_back(shared: &Shared, snapshot: Snapshot, error: &Error) {
    shared.update(|state| {
        state.busy = false;
        state.status.trouble = Some(error.chain());
        if state.pending.is_some() {
            state.status.coalesced += 1;
        } else {
            state.pending = Some(snapshot);
        }
    });
}

fn settle(shared: &Shared, entry: &LogEntry, ended: Option<Error>) {
    shared.update(|state| {
        state.busy = false;
        state.status.durable = entry.step;
        state.status.trouble = None;
        state.ended = ended;
    });
}

/// A step is durable whether or not old ones can be removed: only being fenced ends the uploads here.
async fn retain(writer: &mut Writer, policy: Option<&Retention>) -> Option<Error> {
    let now = writer.task().store.clock.now();
    match writer.retain(policy?, now).await {
        Ok(_) => None,
        Err(error) if error.kind() == Kind::Fenced => Some(error),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "cannot remove old steps, trying again after the next one");
            None
        }
    }
}

fn passes(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Exhausted)
}
