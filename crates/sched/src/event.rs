//! What the scheduler is told.

use pleach_base::{Fence, Step, Term, WorkerId};

use crate::commit::Commit;
use crate::job::{Failure, JobKey, Needs};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job was submitted. Ignored when the job is known.
    Submitted {
        /// Which job.
        job: JobKey,
        /// What it asks for.
        needs: Needs,
    },
    /// A user wants a job to stop.
    CancelAsked {
        /// Which job.
        job: JobKey,
        /// Why, for people; may be empty.
        reason: String,
    },
    /// An ended job is to be forgotten. Ignored when it has not ended.
    Deleted {
        /// Which job.
        job: JobKey,
    },
    /// A worker registered.
    Registered {
        /// Who.
        worker: WorkerId,
        /// Where peers reach it.
        host: String,
        /// Port of the key-value store that it hosts when it has rank 0.
        rendezvous_port: u16,
        /// Where it answers its peers; 0 when nowhere.
        pulse_port: u16,
    },
    /// A worker's session stands.
    Connected {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's session broke.
    Disconnected {
        /// Who.
        worker: WorkerId,
    },
    /// A worker says that it lives.
    Heartbeat {
        /// Who.
        worker: WorkerId,
        /// Operations of the training thread since the process began.
        progress: u64,
        /// It works on nothing.
        idle: bool,
        /// It wants no more work.
        draining: bool,
        /// What it works on, if it says.
        part: Option<Part>,
        /// Microseconds that it computed in its last step; 0 when unknown.
        compute_us: u64,
    },
    /// A worker reports something about the generation that it works in.
    Reported {
        /// Who.
        worker: WorkerId,
        /// In which generation of which job.
        part: Part,
        /// What.
        report: Report,
    },
    /// Time passed.
    Tick,
}

impl Event {
    /// Whether it comes from a worker: those come by the thousand, and [`State::hear`](crate::State::hear) takes them in.
    #[must_use]
    pub fn is_of_worker(&self) -> bool {
        match self {
            Self::Registered { .. }
            | Self::Connected { .. }
            | Self::Disconnected { .. }
            | Self::Heartbeat { .. }
            | Self::Reported { .. } => true,
            Self::Submitted { .. } | Self::CancelAsked { .. } | Self::Deleted { .. } | Self::Tick => false,
        }
    }

    /// Whether it usually says only that somebody lives and gets on.
    pub(crate) fn is_routine(&self) -> bool {
        match self {
            Self::Heartbeat { .. } => true,
            Self::Reported { report, .. } => {
                matches!(report, Report::Committed { .. } | Report::Durable { .. } | Report::Other)
            }
            _ => false,
        }
    }
}

/// A part in a job: the generation that a worker works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which job.
    pub job: JobKey,
    /// The generation and the leader that formed it.
    pub fence: Fence,
}

/// What a worker reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The worker has loaded what the job needs and reached all members (answer to `Effect::Prepare`).
    Prepared,
    /// The rank has joined its gang and loaded its state.
    Ready,
    /// The ranks agreed on these steps, in order. From rank 0.
    Committed {
        /// What came out.
        commits: Vec<Commit>,
    },
    /// A collective makes no progress, and these ranks do not answer this one.
    Stalled {
        /// Who does not answer; may be nobody.
        suspects: Vec<u32>,
    },
    /// A checkpoint is in the store.
    Durable {
        /// Of this step.
        step: Step,
    },
    /// The job is done, when rank 0 says so; otherwise this rank is.
    Finished,
    /// The rank stopped at a step boundary.
    Drained,
    /// The rank cannot go on in this generation.
    Failed {
        /// Why.
        failure: Failure,
        /// Trying again cannot help.
        permanent: bool,
        /// Ranks that it waited for in vain.
        suspects: Vec<u32>,
    },
    /// The worker cannot get ready (answer to `Effect::Prepare`).
    Unprepared {
        /// Why.
        failure: Failure,
        /// Trying again cannot help.
        permanent: bool,
        /// Ranks of the gang that did not answer it.
        suspects: Vec<u32>,
    },
    /// Something without consequence for the schedule (an evaluation, a note): only the fence is checked.
    Other,
}

impl Part {
    /// The part of `job` under the fence (`term`, `generation`).
    #[must_use]
    pub fn new(job: JobKey, term: u64, generation: u64) -> Self {
        Self { job, fence: Fence { term: Term(term), generation: pleach_base::Generation(generation) } }
    }
}
