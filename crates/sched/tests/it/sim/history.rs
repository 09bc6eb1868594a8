//! What was fed, and which of it counts: the effective history of a job.

use std::collections::{BTreeMap, BTreeSet};

use pleach_base::Fence;
use pleach_base::rng::Key;
use pleach_sched::JobKey;

/// From the feed logs of all workers.
#[derive(Default)]
pub(crate) struct History {
    jobs: BTreeMap<JobKey, BTreeMap<Fence, Generation>>,
    ended: BTreeSet<JobKey>,
}

#[derive(Default)]
struct Generation {
    /// Who made each step of the state that the ranks hold.
    lineage: BTreeMap<u64, Fence>,
    /// Lanes that were fed, by step.
    fed: BTreeMap<u64, Vec<u32>>,
}

/// The state after a step: it depends on the whole past.
pub(crate) fn digest(before: u64, step: u64, fence: Fence) -> u64 {
    Key::seed(before).with(step).with(fence.term.0).with(fence.generation.0).value()
}

impl History {
    /// A generation goes on from a state that generation `made` had.
    pub(super) fn resume(&mut self, job: &JobKey, fence: Fence, step: u64, made: Fence) {
        let generations = self.jobs.entry(job.clone()).or_default();
        let mut lineage = generations.get(&made).map(|before| before.lineage.clone()).unwrap_or_default();
        lineage.retain(|of, _| *of <= step);
        assert_eq!(lineage.len() as u64, step, "{job} {fence} goes on from a step that nobody made");
        let before = generations.insert(fence, Generation { lineage, ..Generation::default() });
        assert!(before.is_none(), "{job} {fence} settled twice");
    }

    pub(super) fn feed(&mut self, job: &JobKey, fence: Fence, step: u64, lanes: &[u32]) {
        let Some(generation) = self.jobs.get_mut(job).and_then(|all| all.get_mut(&fence)) else {
            panic!("{job} {fence} feeds before it settled")
        };
        generation.lineage.insert(step, fence);
        generation.fed.entry(step).or_default().extend(lanes);
    }

    /// Whether this is the first word that a job has ended.
    pub(super) fn end(&mut self, job: &JobKey) -> bool {
        self.ended.insert(job.clone())
    }

    /// `sample-once-per-epoch`: in the history that leads to the stored state each step is made once, from each lane once.
    pub(super) fn check(&self, job: &JobKey, writer: Fence, stored: u64) {
        let Some(all) = self.jobs.get(job) else { return };
        let lineage = all.get(&writer).map(|generation| generation.lineage.clone()).unwrap_or_default();
        assert_eq!(lineage.len() as u64, super::STEPS, "{job}: the writer {writer} did not have all steps");
        let mut state = 0;
        for (step, fence) in &lineage {
            let mut lanes = all.get(fence).and_then(|made| made.fed.get(step)).cloned().unwrap_or_default();
            lanes.sort_unstable();
            let whole: Vec<_> = (0..lanes.len() as u32).collect();
            assert!(!lanes.is_empty() && lanes == whole, "{job} {fence} step {step} was fed lanes {lanes:?}");
            state = digest(state, *step, *fence);
        }
        assert_eq!(state, stored, "{job}: the store holds what its history does not lead to");
    }
}
