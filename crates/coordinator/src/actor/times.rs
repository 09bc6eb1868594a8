//! Where the time of the newest steps went, as workers tell it. Kept in memory only: nobody's work depends on it.

use std::collections::{BTreeMap, VecDeque};

use pleach_base::{Fence, Result, WorkerId};
use pleach_proto::v1::{GetProfileResponse, RankTimes, Stage, StepTimes, Times};
use pleach_sched::{JobKey, Part};

use super::Actor;

/// Steps that are kept of a rank.
const KEPT: usize = 64;

/// The newest steps of the ranks of one generation.
#[derive(Debug, Default)]
pub(super) struct Profile {
    fence: Option<Fence>,
    ranks: BTreeMap<u32, Rank>,
}

#[derive(Debug, Default)]
struct Rank {
    worker: String,
    steps: VecDeque<StepTimes>,
}

impl Profile {
    /// Takes what a rank tells; a newer generation ends what older ones told.
    fn take(&mut self, fence: Fence, worker: &str, told: Times) {
        if self.fence > Some(fence) {
            return;
        }
        if self.fence < Some(fence) {
            *self = Self { fence: Some(fence), ranks: BTreeMap::new() };
        }
        let rank = self.ranks.entry(told.rank).or_default();
        worker.clone_into(&mut rank.worker);
        rank.steps.extend(told.steps);
        let excess = rank.steps.len().saturating_sub(KEPT);
        rank.steps.drain(..excess);
    }

    fn tell(&self) -> GetProfileResponse {
        let ranks = self.ranks.iter().map(|(rank, told)| RankTimes {
            worker: told.worker.clone(),
            rank: *rank,
            steps: told.steps.iter().cloned().collect(),
        });
        GetProfileResponse { generation: self.fence.map_or(0, |fence| fence.generation.0), ranks: ranks.collect() }
    }

    /// The share of its steps that the rank which waits longest waits for input; none before any step.
    pub(super) fn input_wait_share(&self) -> Option<f64> {
        self.ranks.values().filter_map(|rank| share(&rank.steps, Stage::Data)).max_by(f64::total_cmp)
    }
}

/// The share of a stage in the time of steps.
fn share(steps: &VecDeque<StepTimes>, stage: Stage) -> Option<f64> {
    let (mut of, mut total) = (0, 0);
    for time in steps.iter().flat_map(|step| &step.stages) {
        total += time.micros;
        of += if time.stage() == stage { time.micros } else { 0 };
    }
    (total > 0).then(|| of as f64 / total as f64)
}

impl Actor {
    /// Takes what a rank of the current generation tells, or of the one with which the job ended.
    pub(crate) fn times(&mut self, worker: &WorkerId, part: &Part, told: Times) {
        let current = self.state.jobs.get(&part.job).is_some_and(|job| job.fence() == part.fence);
        if let Some(entry) = self.entries.get_mut(&part.job).filter(|_| current) {
            entry.profile.take(part.fence, &worker.name, told);
        }
    }

    /// What is known of a job's time.
    pub(crate) fn profile(&self, key: &JobKey) -> Result<GetProfileResponse> {
        Ok(self.entry(key)?.profile.tell())
    }
}

#[cfg(test)]
mod tests {
    use pleach_base::{Generation, Term};
    use pleach_proto::v1::StageTime;

    use super::*;

    fn step(step: u64, data: u64, forward: u64) -> StepTimes {
        let time = |stage: Stage, micros| StageTime { stage: stage.into(), micros };
        let stages = vec![time(Stage::Data, data), time(Stage::Forward, forward)];
        StepTimes { step, stages, ..StepTimes::default() }
    }

    #[test]
    fn the_newest_steps_of_the_newest_generation_are_kept() {
        let fence = |generation| Fence { term: Term(1), generation: Generation(generation) };
        let mut profile = Profile::default();
        assert_eq!(profile.input_wait_share(), None);
        let mut tell = |generation, worker: &str, rank, steps: Vec<StepTimes>| {
            profile.take(fence(generation), worker, Times { rank, steps });
            let told = profile.tell();
            let brief = |rank: &RankTimes| (rank.worker.clone(), rank.steps.iter().map(|s| s.step).collect::<Vec<_>>());
            (told.generation, told.ranks.iter().map(brief).collect::<Vec<_>>(), profile.input_wait_share())
        };
        tell(1, "w1", 1, vec![step(1, 5, 5)]);
        let (_, ranks, share) = tell(1, "w0", 0, vec![step(1, 1, 9)]);
        assert_eq!(ranks, [("w0".into(), vec![1]), ("w1".into(), vec![1])]);
        assert_eq!(share, Some(0.5), "that of the rank that waits longest");
        let (generation, ranks, share) = tell(2, "w1", 0, vec![step(2, 1, 9), step(3, 4, 6)]);
        assert_eq!((generation, ranks, share), (2, vec![("w1".into(), vec![2, 3])], Some(0.25)));
        assert_eq!(tell(1, "w0", 0, vec![step(2, 9, 1)]).1, [("w1".into(), vec![2, 3])], "too late");
        let many = tell(2, "w1", 0, (4..=KEPT as u64 + 5).map(|at| step(at, 0, 1)).collect()).1;
        assert!(many[0].1.iter().copied().eq(6..=KEPT as u64 + 5), "{many:?}");
    }
}
