//! Records of steps: which generation made a step, and what came out of it.

use std::collections::VecDeque;

use pleach_base::{Fence, Step, TaskName};
use serde::{Deserialize, Serialize};

/// Records that are kept per task: a rank that was away for longer goes on from a peer's state or from the store.
pub const KEPT: usize = 16;

/// One step of one task, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Which task.
    pub task: TaskName,
    /// Steps done, this one included.
    pub step: Step,
    /// The generation that made it.
    pub fence: Fence,
    /// sha256 of the task's state after the step, hex.
    pub digest: String,
}

/// The newest records of one task, oldest first, steps without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// At most [`KEPT`].
    pub recent: VecDeque<Commit>,
}

impl Head {
    /// The newest recorded step; 0 before the first.
    #[must_use]
    pub fn step(&self) -> Step {
        self.recent.back().map_or(Step(0), |commit| commit.step)
    }

    /// Adds a record; it takes the place of those from its step on.
    pub(crate) fn record(&mut self, commit: Commit) {
        self.recent.retain(|before| before.step < commit.step);
        self.recent.push_back(commit);
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
    }
}
