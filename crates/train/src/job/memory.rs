//! The last states of a task in memory: the newest that is known to be recorded, the newest on which the ranks agreed, and,
//! in the engine, what is being made. They outlive the gang: the next one goes on from them.

use std::collections::VecDeque;

use pleach_base::Fence;
use serde_json::{Map, Value, json};

use super::settle::Claim;
use crate::engine::{Task, TaskState};
use crate::record::CommitRow;

/// Where a state is kept.
pub(super) const RECORDED: usize = 0;
pub(super) const AGREED: usize = 1;
/// In the engine's task itself.
pub(super) const LIVE: usize = 2;
/// How many places there are.
pub(super) const SLOTS: usize = 3;

/// A copy of a state, with what is said of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) state: TaskState,
    /// The generation that made it, or settled on it.
    pub(super) fence: Fence,
    /// What the manifest says of it.
    pub(super) metrics: Map<String, Value>,
    /// It was evaluated and handed to the store, where the job file wants that.
    pub(super) rounded_off: bool,
}

/// What a rank remembers of a task.
#[derive(Debug, Default)]
pub(super) struct Memory {
    recorded: Option<Held>,
    agreed: Option<Held>,
    /// Steps since the durable one, oldest first.
    pub(super) ledger: VecDeque<CommitRow>,
    /// The newest step that is durable, as far as rank 0 said.
    pub(super) durable: u64,
    /// The generation that the engine's task is, or was, trained by.
    generation: Fence,
}

impl Memory {
    /// The ranks agreed on the state that `task` holds now. `recorded` and `durable` are what rank 0 knew before.
    pub(super) fn agreed(
        &mut self,
        task: &Task,
        row: CommitRow,
        metrics: &Map<String, Value>,
        (recorded, durable): (u64, u64),
    ) {
        self.pin(recorded);
        let (fence, metrics) = (row.fence, metrics.clone());
        let spare = self.agreed.take().map(|held| held.state);
        self.agreed = Some(Held { state: task.capture(spare), fence, metrics, rounded_off: false });
        self.ledger.push_back(row);
        self.is_durable(durable);
    }

    /// Keeps the last agreed state as the recorded one when it is recorded.
    fn pin(&mut self, recorded: u64) {
        if self.agreed.as_ref().is_some_and(|held| held.state.step <= recorded) {
            // What was pinned becomes the memory of the next copy.
            std::mem::swap(&mut self.recorded, &mut self.agreed);
        }
    }

    /// Rows up to a durable step are in the store.
    pub(super) fn is_durable(&mut self, step: u64) {
        self.durable = step.max(self.durable);
        while self.ledger.front().is_some_and(|row| row.step.0 <= self.durable) {
            self.ledger.pop_front();
        }
    }

    /// What the job file wants after the last agreed step is done.
    pub(super) fn round_off(&mut self, metrics: &Map<String, Value>) {
        if let Some(held) = &mut self.agreed {
            held.metrics.clone_from(metrics);
            held.rounded_off = true;
        }
    }

    /// What this rank can go on from. What the engine made counts while no copy of it is there, and only whole.
    pub(super) fn claims(&self, task: &Task, rank: usize) -> [Option<Claim>; SLOTS] {
        let of = |slot, held: &Option<Held>| {
            held.as_ref().map(|held| Claim {
                rank,
                slot,
                step: held.state.step,
                fence: held.fence,
                digest: held.state.digest,
                agreed: true,
                rounded_off: held.rounded_off,
            })
        };
        let agreed = of(AGREED, &self.agreed);
        let live = task.whole_state().map(|(step, digest)| Claim {
            rank,
            slot: LIVE,
            step,
            fence: self.generation,
            digest,
            agreed: false,
            rounded_off: false,
        });
        let live = live.filter(|live| live.step > 0 && agreed.is_none_or(|agreed| !agreed.is_state_of(live)));
        [of(RECORDED, &self.recorded), agreed, live]
    }

    /// Makes sure that there is a copy of what was chosen, and says where: what the engine made is recorded when it is
    /// chosen, so it takes the place of the agreed state before it.
    pub(super) fn copied(&mut self, slot: usize, task: &Task) -> usize {
        if slot != LIVE {
            return slot;
        }
        let spare = self.agreed.take().map(|held| held.state);
        let metrics = Map::from_iter([("train/loss".to_owned(), json!(task.loss))]);
        self.agreed = Some(Held { state: task.capture(spare), fence: self.generation, metrics, rounded_off: false });
        AGREED
    }

    /// A copy.
    pub(super) fn held(&self, slot: usize) -> Option<&Held> {
        if slot == RECORDED { self.recorded.as_ref() } else { self.agreed.as_ref() }
    }

    /// A copy, taken out.
    pub(super) fn take(&mut self, slot: usize) -> Option<Held> {
        if slot == RECORDED { self.recorded.take() } else { self.agreed.take() }
    }

    /// All ranks of generation `fence` hold what was settled on.
    pub(super) fn adopt(&mut self, fence: Fence) {
        if let Some(held) = &mut self.agreed {
            held.fence = fence;
        }
    }

    /// Generation `fence` goes on from `held`: what lies beyond it did not come to pass.
    pub(super) fn settle_on(&mut self, held: Option<Held>, fence: Fence) {
        self.generation = fence;
        let step = held.as_ref().map_or(0, |held| held.state.step);
        if self.recorded.as_ref().is_some_and(|recorded| recorded.state.step >= step) {
            self.recorded = None;
        }
        self.ledger.retain(|row| row.step.0 <= step);
        self.durable = self.durable.min(step);
        self.agreed = held;
    }
}
