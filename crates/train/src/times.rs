//! Where the time of a step went on this rank: a stopwatch that the training thread switches from stage to stage.
//!
//! Every moment between start and stop belongs to exactly one stage, so stages add up to the step. These are times of this
//! thread: on a GPU work that was handed over counts where the thread waits for it, not where it was handed over.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pleach_base::{SharedClock, TaskName};

/// Stages of one step that are told one by one. Of a step with more each stage is told once, with its sum.
const MOST: usize = 256;

/// What the training thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It waits for rows, and lays them out.
    Data,
    /// It waits for other ranks before or amid its own work.
    Wait,
    /// From inputs to losses.
    Forward,
    /// From losses to gradients, with what is computed again for them.
    Backward,
    /// Gradients are added over ranks. The rank that comes first waits here for the others.
    Reduce,
    /// Clipping, the update, and what the method does around it.
    Optimiser,
    /// The state is hashed, the ranks agree on it, the step is told.
    Commit,
    /// An evaluation that the job file wants after this step.
    Evaluate,
    /// A checkpoint is taken; writing it goes on in the background.
    Checkpoint,
}

impl Stage {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 9] = [
        Self::Data,
        Self::Wait,
        Self::Forward,
        Self::Backward,
        Self::Reduce,
        Self::Optimiser,
        Self::Commit,
        Self::Evaluate,
        Self::Checkpoint,
    ];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Wait => "wait",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Reduce => "reduce",
            Self::Optimiser => "optimiser",
            Self::Commit => "commit",
            Self::Evaluate => "evaluate",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// The time of one step on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTimes {
    /// The tasks that made it.
    pub tasks: Vec<TaskName>,
    /// Steps done by the first of them, this one included.
    pub step: u64,
    /// When it began, since the Unix epoch; exact against other steps of this generation, else as good as the wall clock.
    pub begun: Duration,
    /// What was done how long, one after the other.
    pub stages: Vec<(Stage, Duration)>,
}

impl StepTimes {
    /// The whole step.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.stages.iter().map(|(_, time)| *time).sum()
    }

    /// What a stage took.
    #[must_use]
    pub fn of(&self, stage: Stage) -> Duration {
        self.stages.iter().filter(|(other, _)| *other == stage).map(|(_, time)| *time).sum()
    }
}

/// Measures steps. While it is stopped, entering a stage does nothing.
#[derive(Debug)]
pub struct Stopwatch {
    clock: SharedClock,
    /// The wall clock's time at the clock's origin.
    origin: Duration,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    begun: Duration,
    stage: Stage,
    since: Duration,
    stages: Vec<(Stage, Duration)>,
}

impl Running {
    /// Ends the current stage.
    fn end(&mut self, now: Duration) {
        let time = now.saturating_sub(self.since);
        self.since = now;
        match self.stages.last_mut() {
            Some((stage, before)) if *stage == self.stage => *before += time,
            _ if time.is_zero() => {}
            _ => self.stages.push((self.stage, time)),
        }
    }
}

impl Stopwatch {
    /// A stopwatch that stands still.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        let origin = Duration::from_millis(clock.now().0).saturating_sub(clock.elapsed());
        Self { clock, origin, running: Mutex::new(None) }
    }

    /// Begins a step with this stage; one that was not ended is forgotten.
    pub fn start(&self, stage: Stage) {
        let now = self.clock.elapsed();
        *self.running() = Some(Running { begun: now, stage, since: now, stages: Vec::new() });
    }

    /// From now on the time is this stage's.
    pub fn enter(&self, stage: Stage) {
        if let Some(running) = self.running().as_mut() {
            running.end(self.clock.elapsed());
            running.stage = stage;
        }
    }

    /// The time of `work` is this stage's; after it the stage before goes on.
    pub fn during<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let before = self.running().as_ref().map(|running| running.stage);
        self.enter(stage);
        let result = work();
        if let Some(before) = before {
            self.enter(before);
        }
        result
    }

    /// Ends the step; none when none was begun.
    pub fn stop(&self, tasks: Vec<TaskName>, step: u64) -> Option<StepTimes> {
        let mut running = self.running().take()?;
        running.end(self.clock.elapsed());
        Some(StepTimes { tasks, step, begun: self.origin + running.begun, stages: folded(running.stages) })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each stage once, with its sum, where there are too many.
fn folded(stages: Vec<(Stage, Duration)>) -> Vec<(Stage, Duration)> {
    if stages.len() <= MOST {
        return stages;
    }
    let sum = |stage| stages.iter().filter(|(other, _)| *other == stage).map(|(_, time)| *time).sum();
    let sums = Stage::ALL.into_iter().map(|stage| (stage, sum(stage)));
    sums.filter(|(_, time): &(Stage, Duration)| !time.is_zero()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pleach_base::{Clock as _, ManualClock};

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_moment_belongs_to_one_stage() {
        let clock = ManualClock::starting_at(1_000);
        let watch = Stopwatch::new(Arc::<ManualClock>::clone(&clock));
        watch.enter(Stage::Forward);
        clock.advance(ms(9));
        assert_eq!(watch.stop(Vec::new(), 0), None, "it stood still");
        watch.start(Stage::Data);
        clock.advance(ms(3));
        watch.enter(Stage::Forward);
        clock.advance(ms(4));
        watch.during(Stage::Wait, || clock.advance(ms(5)));
        clock.advance(ms(6));
        watch.enter(Stage::Forward);
        clock.advance(ms(1));
        watch.enter(Stage::Commit);
        let times = watch.stop(vec!["a".into()], 7).unwrap();
        let expected = [(Stage::Data, ms(3)), (Stage::Forward, ms(4)), (Stage::Wait, ms(5)), (Stage::Forward, ms(7))];
        assert_eq!(times.stages, expected);
        assert_eq!((times.begun, times.total()), (ms(1_009), clock.elapsed() - ms(1_009)));
        assert_eq!((times.of(Stage::Forward), times.of(Stage::Reduce)), (ms(11), ms(0)));
    }

    #[test]
    fn a_step_of_very_many_stages_is_told_as_sums() {
        let clock = ManualClock::starting_at(0);
        let watch = Stopwatch::new(Arc::<ManualClock>::clone(&clock));
        watch.start(Stage::Data);
        for _ in 0..MOST {
            for stage in [Stage::Backward, Stage::Forward] {
                watch.enter(stage);
                clock.advance(ms(2));
            }
        }
        let times = watch.stop(Vec::new(), 1).unwrap();
        let each = ms(2) * MOST as u32;
        assert_eq!(times.stages, [(Stage::Forward, each), (Stage::Backward, each)]);
    }
}
