//! The job loop: loads the model and opens data once, settles with the other ranks where each task goes on, trains the
//! tasks in turn, evaluates, checkpoints in the background, and ends finished, drained, or yielding to another gang.
//!
//! It runs on one plain thread and blocks. All ranks run the same loop; rank 0 alone writes to the store. Not here: who
//! is in the gang (the worker joins it), what is retried (the coordinator decides), how a step works ([`crate::Engine`]).

mod broadcast;
mod checkpoint;
mod course;
mod data;
mod experts;
mod feed;
mod init;
mod keepalive;
mod meet;
mod memory;
mod model;
mod ready;
mod remote;
mod resume;
mod round;
mod settle;
mod task;
mod uploads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pleach_base::{Fence, JobId, Result, SharedClock, Tenant, code};
use pleach_comm::Collective;
use pleach_spec::Job;
use tokio::runtime::Handle;

pub use model::Warm;
pub use ready::Preparation;

use crate::feed::FeedSink;
use crate::observer::Observer;
use crate::record::{Heads, Recorded};
use crate::stop::StopSignal;

/// What one rank needs for a job.
pub struct JobContext<'a> {
    /// The owner.
    pub tenant: Tenant,
    /// The job's id; also its folder name in the store.
    pub id: JobId,
    /// The resolved job.
    pub job: Job,
    /// Term and generation of this gang.
    pub fence: Fence,
    /// The gang. Its device is where the model goes.
    pub group: &'a dyn Collective,
    /// What is recorded of the job's tasks.
    pub heads: Heads,
    /// How far the steps of this generation are recorded.
    pub recorded: Recorded,
    /// Where it is written down what each step is fed, before it is.
    pub feed: Option<Arc<dyn FeedSink>>,
    /// Hears what happens.
    pub observer: Arc<dyn Observer>,
    /// How the job is asked to stop.
    pub stop: StopSignal,
    /// Runs the uploads. The calling thread must not be one of its own.
    pub runtime: Handle,
    /// Times steps.
    pub clock: SharedClock,
}

/// How a job's part ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All tasks made all their steps; on rank 0 the last checkpoints are durable.
    Finished,
    /// A rank asked to drain: all stopped after the same step; on rank 0 its checkpoint is durable.
    Drained,
    /// A rank asked to yield: all stopped after the same step and keep its state in memory; nothing was written.
    Yielded,
}

impl JobContext<'_> {
    fn preparation(&self) -> Preparation {
        Preparation {
            tenant: self.tenant.clone(),
            id: self.id.clone(),
            job: self.job.clone(),
            device: self.group.device(),
            observer: Arc::clone(&self.observer),
            stop: self.stop.clone(),
            runtime: self.runtime.clone(),
        }
    }
}

/// Loads the model and the tokenizer of a job, opens its data and builds its adapters, all into `warm`: what can be done
/// before the gang is there. [`run_job`] for the same job then begins at once; what `warm` holds already is not made again.
///
/// # Errors
/// Any code that is about the model, the data or the job; `CANCELLED` after an abort.
pub fn prepare(cx: &Preparation, warm: &mut Warm) -> Result<()> {
    guarded(&cx.stop, warm, |warm| {
        cx.stop.check()?;
        warm.ready(cx).map(drop)
    })
}

/// Runs a job as one rank. `warm` keeps model, data, adapters and the last states of the tasks for the next call: also
/// when this one fails, so that the next gang goes on from memory.
///
/// # Errors
/// Any code. `CANCELLED` after an abort. A panic of the libraries below becomes `INTERNAL` and empties `warm`. The group is
/// then of no further use: drop it, so that its peers notice.
pub fn run_job(cx: JobContext<'_>, warm: &mut Warm) -> Result<Outcome> {
    let outcome = guarded(&cx.stop, warm, |warm| round::run(&cx, warm));
    pleach_nn::release_memory();
    outcome
}

fn guarded<T>(stop: &StopSignal, warm: &mut Warm, work: impl FnOnce(&mut Warm) -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(|| work(warm))).unwrap_or_else(|panic| {
        // Whatever was being used may be half changed.
        *warm = Warm::default();
        Err(code::INTERNAL.error(format!("the training thread panicked: {}", panic_text(panic.as_ref()))))
    });
    match result {
        // What an abort breaks is not worth reporting; that there was one is.
        Err(error) if stop.is_aborted() => Err(stop.check().err().unwrap_or(error)),
        other => other,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // libtorch appends a C++ stack trace, with its line ends written out when an `unwrap` shows the error; the first
    // line says what happened.
    let first = text.unwrap_or("no message").lines().next().unwrap_or_default();
    first.split("\\nException raised").next().unwrap_or_default()
}
