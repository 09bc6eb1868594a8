//! Where the time of the last steps went: kept until the next heartbeat takes it along.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pleach_proto::v1::{StepTimes, Times};

use crate::reporter::Part;

/// Steps that wait; older ones are forgotten.
const KEPT: usize = 64;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Steps of one rank in one part that were not told yet.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    part: Part,
    rank: u32,
    steps: VecDeque<StepTimes>,
}

impl Untold {
    /// Keeps a step; what waits of another part is forgotten.
    pub(crate) fn push(&self, part: &Part, rank: u32, step: StepTimes) {
        let mut waiting = self.waiting();
        let same = waiting.take().filter(|before| before.part == *part && before.rank == rank);
        let mut now = same.unwrap_or_else(|| Waiting { part: part.clone(), rank, steps: VecDeque::new() });
        now.steps.push_back(step);
        if now.steps.len() > KEPT {
            now.steps.pop_front();
        }
        *waiting = Some(now);
    }

    /// What waits, and the part that it belongs to.
    pub(crate) fn take(&self) -> Option<(Part, Times)> {
        let Waiting { part, rank, steps } = self.waiting().take()?;
        Some((part, Times { rank, steps: steps.into() }))
    }

    /// Returns when nothing waits.
    pub(crate) async fn told(&self) {
        while self.waiting().is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pleach_base::{Fence, Generation, Term};

    use super::*;

    #[test]
    fn the_newest_steps_of_the_newest_part_wait_and_are_taken_once() {
        let part = |generation| Part {
            tenant: "t".into(),
            job: "j".into(),
            fence: Fence { term: Term(1), generation: Generation(generation) },
        };
        let step = |step| StepTimes { step, ..StepTimes::default() };
        let untold = Untold::default();
        untold.push(&part(1), 1, step(9));
        (1..=KEPT as u64 + 2).for_each(|at| untold.push(&part(2), 0, step(at)));
        let (of, times) = untold.take().unwrap();
        assert_eq!((of, times.rank), (part(2), 0));
        assert!(times.steps.iter().map(|step| step.step).eq(3..=KEPT as u64 + 2));
        assert!(untold.take().is_none());
    }
}
