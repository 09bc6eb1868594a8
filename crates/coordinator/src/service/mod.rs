//! The gRPC services: from messages to requests of the actor and back.

mod checkpoints;
mod jobs;
mod workers;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Result, code};
use pleach_proto::status::to_status;
use pleach_sched::{JobKey, Part};
use tokio_util::task::TaskTracker;
use tonic::Status;

pub(crate) use checkpoints::Checkpoints;
pub(crate) use jobs::Jobs;
pub(crate) use workers::Workers;

use crate::actor::Seat;

/// What every service holds.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) actor: Seat,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: Shutdown,
}

/// For `map_err`.
fn status(error: Error) -> Status {
    to_status(&error)
}

/// The part that a message names; none when it names no job.
fn part(tenant: &str, job: &str, term: u64, generation: u64) -> Result<Option<Part>> {
    if job.is_empty() {
        return Ok(None);
    }
    let tenant = if tenant.is_empty() { crate::caller::DEFAULT_TENANT } else { tenant };
    if tenant.contains('/') || job.contains('/') {
        return Err(code::BAD_VALUE.error(format!("job: `{tenant}/{job}` is not a name")));
    }
    Ok(Some(Part::new(JobKey::new(tenant, job), term, generation)))
}
