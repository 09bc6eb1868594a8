//! The job loop: loads the model once, opens data, resumes each task from the newest durable step, trains the tasks in
//! turn, evaluates, checkpoints in the background, and ends finished or drained.
//!
//! It runs on one plain thread and blocks. All ranks run the same loop; rank 0 alone writes to the store. Not here: who
//! is in the gang (the worker joins it), what is retried (the coordinator decides), how a step works ([`crate::Engine`]).

mod broadcast;
mod checkpoint;
mod data;
mod init;
mod keepalive;
mod model;
mod remote;
mod resume;
mod round;
mod task;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pleach_base::{Fence, JobId, Result, SharedClock, Tenant, code};
use pleach_comm::Collective;
use pleach_spec::Job;
use tokio::runtime::Handle;

pub use model::Warm;

use crate::observer::Observer;
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
}

/// Runs a job as one rank. `warm` keeps the model for the next call.
///
/// # Errors
/// Any code. `CANCELLED` after an abort. A panic of the libraries below becomes `INTERNAL`. The group is then of no
/// further use: drop it, so that its peers notice.
pub fn run_job(cx: JobContext<'_>, warm: &mut Warm) -> Result<Outcome> {
    let stop = cx.stop.clone();
    let result = catch_unwind(AssertUnwindSafe(|| round::run(&cx, warm))).unwrap_or_else(|panic| {
        // Whatever was being used may be half changed.
        *warm = Warm::default();
        Err(code::INTERNAL.error(format!("the training thread panicked: {}", panic_text(panic.as_ref()))))
    });
    match result {
        // What an abort breaks is not worth reporting; that there was one is.
        Err(_) if stop.is_aborted() => stop.check().map(|()| Outcome::Drained),
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
