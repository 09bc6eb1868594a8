//! What the scheduler asks its caller to do, in order: persist first, then send.

use std::collections::BTreeMap;

use pleach_base::{Fence, TaskName, WorkerId};
use serde::{Deserialize, Serialize};

use crate::commit::{Commit, Head};
use crate::gang::Member;
use crate::job::JobKey;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A job changed: persist it before anything that follows is sent, and tell watchers.
    Changed {
        /// Which job.
        job: JobKey,
    },
    /// A job was forgotten.
    Forgotten {
        /// Which job.
        job: JobKey,
    },
    /// Give a worker a part in a gang. May be repeated for the same fence.
    Assign {
        /// To whom.
        worker: WorkerId,
        /// Which part.
        assignment: Assignment,
    },
    /// Let a worker that is free get ready to take part: load the model and the data, and see that `members` answer.
    Prepare {
        /// To whom.
        worker: WorkerId,
        /// For which job.
        job: JobKey,
        /// Its newest fence.
        fence: Fence,
        /// The ranks of the current gang, if there is one.
        members: Vec<Member>,
    },
    /// Steps were recorded: persist them before the report is answered.
    Committed {
        /// Of which job.
        job: JobKey,
        /// In order; a commit for a step that is recorded already supersedes it.
        commits: Vec<Commit>,
    },
    /// End a worker's part.
    Stop {
        /// To whom.
        worker: WorkerId,
        /// Which job; `None` for whatever it does.
        part: Option<(JobKey, Fence)>,
        /// How.
        mode: StopMode,
        /// Why, in a sentence.
        reason: String,
    },
    /// A worker holds no lease any more: its session is closed.
    Released {
        /// Who.
        worker: WorkerId,
    },
    /// The event came from a worker or generation that is not current, and changed nothing.
    Refused {
        /// Why, in a sentence.
        reason: String,
    },
    /// A line of history.
    Note {
        /// Of which job, if of one.
        job: Option<JobKey>,
        /// A stable word.
        kind: &'static str,
        /// A sentence.
        message: String,
        /// Whom it is about.
        worker: Option<WorkerId>,
    },
}

/// A part in a gang.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which job.
    pub job: JobKey,
    /// The generation and its leader.
    pub fence: Fence,
    /// This worker's rank.
    pub rank: usize,
    /// Host of rank 0's key-value store.
    pub rendezvous_host: String,
    /// Its port.
    pub rendezvous_port: u16,
    /// All ranks.
    pub members: Vec<Member>,
    /// What is recorded of every task.
    pub heads: BTreeMap<TaskName, Head>,
}

/// How a part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// At a step boundary, with a checkpoint.
    Drain,
    /// At a step boundary, all state kept in memory: the next generation goes on from there.
    Yield,
    /// At once.
    Abort,
}
