//! What was fed and by whom, and the history that counts.

use std::collections::BTreeMap;

use pleach_base::Fence;

use super::{LANES, TASKS};
use crate::sim::digest;

/// By task.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Ledger([BTreeMap<Fence, Generation>; TASKS.len()]);

#[derive(Clone, Debug, Default, Hash)]
struct Generation {
    /// The step that it went on from, and who made each step up to it.
    resumed: u64,
    lineage: Vec<Fence>,
    /// Lanes that were fed, by step.
    fed: BTreeMap<u64, Vec<u32>>,
}

impl Ledger {
    /// A generation goes on from a state that generation `made` had.
    pub(super) fn resume(&mut self, task: usize, fence: Fence, step: u64, made: Fence) -> Result<(), String> {
        let mut lineage = self.0[task].get(&made).map(|before| before.lineage.clone()).unwrap_or_default();
        lineage.truncate(step as usize);
        if lineage.len() as u64 != step {
            return Err(format!("{fence} goes on from step {step} of {made}, which did not make it"));
        }
        let new = Generation { resumed: step, lineage, ..Generation::default() };
        match self.0[task].insert(fence, new) {
            Some(_) => Err(format!("{fence} settled twice")),
            None => Ok(()),
        }
    }

    pub(super) fn newest(&self, task: usize) -> Option<Fence> {
        self.0[task].keys().last().copied()
    }

    pub(super) fn feed(&mut self, task: usize, fence: Fence, step: u64, lanes: &[u32]) {
        let Some(generation) = self.0[task].get_mut(&fence) else { return };
        generation.fed.entry(step).or_default().extend(lanes);
        if generation.lineage.len() as u64 + 1 == step {
            generation.lineage.push(fence);
        }
    }

    /// Generations in the order of their fences; what one made beyond the step that the next went on from does not count.
    /// Each step that counts was fed each lane once: `sample-once-per-epoch`. Returns the state after each step.
    pub(super) fn effective(&self, task: usize) -> Result<Vec<u64>, String> {
        let mut makers = Vec::new();
        for (fence, generation) in &self.0[task] {
            if makers.len() < generation.resumed as usize {
                return Err(format!(
                    "lost: {fence} goes on from step {}, {} were made",
                    generation.resumed,
                    makers.len()
                ));
            }
            makers.truncate(generation.resumed as usize);
            if makers != generation.lineage[..makers.len()] {
                return Err(format!("{fence} goes on from another history than the one that counts"));
            }
            let steps = generation.fed.keys().copied();
            if !steps.eq(makers.len() as u64 + 1..=(makers.len() + generation.fed.len()) as u64) {
                return Err(format!("{fence} left out a step: {:?}", generation.fed));
            }
            makers.extend(generation.fed.keys().map(|_| *fence));
        }
        let (mut states, mut state) = (vec![0], 0);
        for (at, fence) in makers.iter().enumerate() {
            let step = at as u64 + 1;
            let mut lanes = self.0[task][fence].fed[&step].clone();
            lanes.sort_unstable();
            if !lanes.iter().copied().eq(0..LANES) {
                return Err(format!("sample-once-per-epoch: step {step} of {fence} was fed lanes {lanes:?}"));
            }
            state = digest(state, step, *fence);
            states.push(state);
        }
        Ok(states)
    }
}
