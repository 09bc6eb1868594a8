//! The workers of one generation of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::WorkerId;
use serde::{Deserialize, Serialize};

use crate::effect::StopMode;

/// The workers of one generation, by rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// By rank.
    pub members: Vec<Member>,
    /// When it was formed.
    pub formed_at: Duration,
    /// Set once the gang was asked to end.
    pub ending: Option<Ending>,
    /// What its ranks say when a step does not get done.
    #[serde(skip)]
    pub trouble: Option<Trouble>,
    /// Whether all its ranks have held the same state.
    #[serde(default)]
    pub settled: bool,
    /// Whether it has recorded a step.
    #[serde(default)]
    pub advanced: bool,
}

/// What ranks say about a step that does not get done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// When the first word came.
    pub since: Duration,
    /// By rank.
    pub doubts: BTreeMap<usize, Doubt>,
}

/// The word of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// When it came.
    pub at: Duration,
    /// Ranks that it waits for in vain.
    pub suspects: BTreeSet<usize>,
    /// Why it gave up; a rank that only stalls has not.
    pub gave_up: Option<String>,
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub worker: WorkerId,
    /// Where peers reach it.
    pub host: String,
    /// Where it answers its peers; 0 when nowhere.
    #[serde(default)]
    pub pulse_port: u16,
    /// Port of the key-value store that it hosts when it has rank 0.
    #[serde(default)]
    pub rendezvous_port: u16,
    /// The lanes that it trains.
    pub lanes: Vec<u32>,
    /// How far it is.
    pub state: MemberState,
}

/// How far a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// Loads the model and its state.
    Joining,
    /// Trains.
    Ready,
    /// Works no more in this generation: drained, done, or lost.
    Gone,
}

/// A gang was asked to finish its step and end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// What follows.
    pub why: EndingWhy,
    /// How its ranks stop.
    pub mode: StopMode,
    /// For people.
    pub reason: String,
    /// It is aborted when it has not drained by then.
    pub deadline: Duration,
}

/// What follows a drained gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndingWhy {
    /// The job ends.
    Cancel,
    /// The job forms again with other workers.
    Reform,
}

impl Gang {
    /// Number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.members.len()
    }

    /// The rank of a worker.
    #[must_use]
    pub fn rank_of(&self, worker: &WorkerId) -> Option<usize> {
        self.members.iter().position(|member| &member.worker == worker)
    }

    /// Whether no rank works any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.members.iter().all(|member| member.state == MemberState::Gone)
    }

    /// Whether every rank trains.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.members.iter().all(|member| member.state == MemberState::Ready)
    }
}
