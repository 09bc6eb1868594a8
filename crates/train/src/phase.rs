//! The places of a step at which something may go wrong, by name: tests make a process die at each of them.

use std::fmt;

/// Where the training thread is within a step; for the last one, the uploader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The rows of the step are known and logged, the forward pass begins.
    BeforeForward,
    /// This rank's gradients are there, nothing was exchanged.
    AfterBackward,
    /// The gradients are about to be exchanged; other ranks may be doing it already.
    DuringReduce,
    /// Every rank has the reduced gradient, the update and the agreement follow.
    BeforeCommit,
    /// The ranks agreed on the step, and rank 0 told it.
    AfterCommit,
    /// An upload begins. The only one that is not told on the training thread.
    DuringUpload,
}

impl Phase {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 6] = [
        Self::BeforeForward,
        Self::AfterBackward,
        Self::DuringReduce,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::DuringUpload,
    ];

    /// Its name in fault files and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeForward => "before_forward",
            Self::AfterBackward => "after_backward",
            Self::DuringReduce => "during_reduce",
            Self::BeforeCommit => "before_commit",
            Self::AfterCommit => "after_commit",
            Self::DuringUpload => "during_upload",
        }
    }

    /// The phase of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
