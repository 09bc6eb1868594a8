//! The background upload of one task's steps, on rank 0: only what is recorded goes to the store, and nobody waits for the
//! store but where the job file or the end of the job says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pleach_base::{Error, Kind, Result, Step, TaskName};
use pleach_store::{Snapshot, Store, TaskStore, Uploader, UploaderOptions, Writer};
use tokio::task::JoinHandle;

use super::{JobContext, checkpoint};
use crate::observer::{Level, Observer};
use crate::phase::Phase;
use crate::record::Recorded;
use crate::stop::StopSignal;

/// How often a wait for the store looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// How often it says what it waits for.
const SAY_EVERY: u32 = 50;
/// Pauses between tries to take the task over while the store does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Looks that a drain waits for the record of its last step: without it the step must not go to the store.
const DRAIN_LOOKS: u32 = 50;

/// Uploads the steps of one task. Only rank 0 has one; dropping it ends what is under way.
pub(super) struct Checkpoints {
    task: TaskName,
    place: String,
    /// The uploader, once the task is taken over in the store.
    uploader: Arc<Mutex<Option<Result<Uploader>>>>,
    opening: JoinHandle<()>,
    /// Snapshots of steps that are not recorded yet, or wait for the store to open: the oldest, and the newest.
    waiting: Mutex<VecDeque<Snapshot>>,
    max_lag: Option<u64>,
    recorded: Recorded,
    observer: Arc<dyn Observer>,
    stop: StopSignal,
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.opening.abort();
    }
}

impl Checkpoints {
    /// Takes the task over in the background, unless `writer` shows that it is done.
    pub(super) fn start(cx: &JobContext<'_>, task: &TaskName, store: &Store, writer: Option<Writer>) -> Self {
        let place = store.task(&cx.tenant, &cx.id, task);
        let (url, uploader) = (place.url(), Arc::new(Mutex::new(None)));
        let (into, options, runtime) = (Arc::clone(&uploader), options(cx, task, store, &place), cx.runtime.clone());
        let fence = cx.fence;
        let opening = cx.runtime.spawn(async move {
            let writer = match writer {
                Some(writer) => Ok(writer),
                None => take_over(&place, fence).await,
            };
            *lock(&into) = Some(writer.map(|writer| Uploader::start(writer, &runtime, options)));
        });
        Self {
            task: task.clone(),
            place: url,
            uploader,
            opening,
            waiting: Mutex::default(),
            max_lag: cx.job.spec.checkpoint.max_lag,
            recorded: cx.recorded.clone(),
            observer: Arc::clone(&cx.observer),
            stop: cx.stop.clone(),
        }
    }

    /// Hands in a step; waits only when `checkpoint.max_lag` says so.
    ///
    /// # Errors
    /// What ended the uploads: nothing becomes durable any more.
    pub(super) fn submit(&self, snapshot: Snapshot) -> Result<()> {
        let step = snapshot.step;
        self.pump()?;
        let mut waiting = lock(&self.waiting);
        // The oldest stays, so that steps that come faster than their record do not keep each other from the store.
        waiting.truncate(1);
        waiting.push_back(snapshot);
        drop(waiting);
        self.pump()?;
        let Some(lag) = self.max_lag else { return Ok(()) };
        match step.0.checked_sub(lag) {
            // Before the first durable step there is nothing that could be `least`.
            None | Some(0) => Ok(()),
            Some(least) => self.wait(&format!("step {least} (max_lag {lag})"), u32::MAX, |uploader| {
                uploader.is_some_and(|uploader| uploader.durable_step() >= Some(Step(least)))
            }),
        }
    }

    /// Gives the store what has been recorded meanwhile.
    ///
    /// # Errors
    /// As [`Checkpoints::submit`].
    pub(super) fn pump(&self) -> Result<()> {
        let uploader = lock(&self.uploader);
        let uploader = match &*uploader {
            None => return Ok(()),
            Some(Err(error)) => return Err(again(error)),
            Some(Ok(uploader)) => uploader,
        };
        let (recorded, mut waiting) = (self.recorded.step(&self.task), lock(&self.waiting));
        while waiting.front().is_some_and(|snapshot| snapshot.step.0 <= recorded) {
            let Some(snapshot) = waiting.pop_front() else { break };
            uploader.submit(snapshot)?;
        }
        Ok(())
    }

    /// The newest step that this has made durable.
    pub(super) fn durable(&self) -> u64 {
        match &*lock(&self.uploader) {
            Some(Ok(uploader)) => uploader.durable_step().unwrap_or_default().0,
            _ => 0,
        }
    }

    /// Waits until everything handed in is durable, saying what it waits for. A drain does not wait long for a record that
    /// does not come.
    ///
    /// # Errors
    /// What ended the uploads; `CANCELLED` when an abort comes meanwhile.
    pub(super) fn finish(&self, drains: bool) -> Result<()> {
        let Some(last) = lock(&self.waiting).back().map(|snapshot| snapshot.step) else { return self.wait_idle() };
        let mut looks = 0;
        while !self.recorded.wait(&self.task, last.0, LOOK) {
            self.stop.check()?;
            self.observer.progress();
            looks += 1;
            if drains && looks >= DRAIN_LOOKS {
                let line = format!("task {}: step {last} is not recorded, so it is not stored", self.task);
                self.observer.log(Level::Warn, &line);
                lock(&self.waiting).retain(|snapshot| snapshot.step.0 <= self.recorded.step(&self.task));
                break;
            }
            if looks % SAY_EVERY == 1 {
                let line = format!("task {}: waiting for step {last} to be recorded", self.task);
                self.observer.log(Level::Info, &line);
            }
        }
        self.wait_idle()
    }

    fn wait_idle(&self) -> Result<()> {
        self.wait("the last checkpoint", u32::MAX, |uploader| {
            lock(&self.waiting).is_empty()
                && uploader.is_some_and(|uploader| {
                    let status = uploader.status();
                    status.durable >= status.submitted && uploader.wait_idle(Duration::ZERO).is_ok()
                })
        })
    }

    /// Looks until `done`; errors of the uploads end it.
    fn wait(&self, what: &str, most: u32, done: impl Fn(Option<&Uploader>) -> bool) -> Result<()> {
        for look in 0..most {
            self.pump()?;
            let trouble = match &*lock(&self.uploader) {
                Some(Ok(uploader)) if done(Some(uploader)) => return Ok(()),
                Some(Ok(uploader)) => {
                    match uploader.wait_idle(LOOK) {
                        Err(error) if error.kind() != Kind::Unavailable => return Err(error),
                        _ => {}
                    }
                    if done(Some(uploader)) {
                        return Ok(());
                    }
                    uploader.status().trouble
                }
                _ => None,
            };
            self.stop.check()?;
            self.observer.progress();
            // Until the task is taken over, or the step recorded, there is nothing that could be waited on.
            std::thread::sleep(Duration::from_millis(5));
            if look % SAY_EVERY == 1 {
                let trouble = trouble.map(|why| format!(": {why}")).unwrap_or_default();
                let line = format!("task {}: waiting for {what} to be durable in {}{trouble}", self.task, self.place);
                self.observer.log(Level::Info, &line);
            }
        }
        Ok(())
    }
}

fn options(cx: &JobContext<'_>, task: &TaskName, store: &Store, place: &TaskStore) -> UploaderOptions {
    let below_root = checkpoint::below_root(store, place);
    let (told, name) = (Arc::clone(&cx.observer), task.clone());
    let begins = Arc::clone(&cx.observer);
    UploaderOptions {
        retention: Some(checkpoint::retention(&cx.job.spec.checkpoint)),
        on_begin: Some(Box::new(move |_| begins.phase(Phase::DuringUpload))),
        on_durable: Some(Box::new(move |entry| told.durable(&checkpoint::durable_row(&name, &below_root, entry)))),
        longest_pause: None,
    }
}

/// Fences until the store answers.
async fn take_over(place: &TaskStore, fence: pleach_base::Fence) -> Result<Writer> {
    let mut pause = FIRST_PAUSE;
    loop {
        match place.fence(fence).await {
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Exhausted) => {
                tracing::warn!(error = %error.chain(), "the store does not let the task be taken over, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}

fn again(error: &Error) -> Error {
    error.code().error(error.chain()).maybe_hint(error.hint_text().map(str::to_owned))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
