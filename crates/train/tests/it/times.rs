//! Where a step's time went, under a clock that moves only when the test says so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_base::{Fence, Generation, ManualClock, Result, Term};
use pleach_train::{
    FeedRow, FeedSink, JobContext, Observer, Outcome, Phase, Recorded, Stage, StepRow, StepTimes, StopSignal, Warm,
    run_job,
};

use crate::fixture::{llama_job, parse};

/// Everything that a step does takes its time on this clock, where it is told of.
struct Slow {
    clock: Arc<ManualClock>,
    /// Milliseconds until the rows of a step are there.
    rows: u64,
    steps: Mutex<Vec<StepRow>>,
    times: Mutex<Vec<StepTimes>>,
}

impl Slow {
    fn takes(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }
}

/// Rows are noted when they came.
impl FeedSink for Slow {
    fn append(&self, row: &FeedRow) -> Result<()> {
        if matches!(row, FeedRow::Fed { .. }) {
            self.takes(self.rows);
        }
        Ok(())
    }
}

impl Observer for Slow {
    fn step(&self, row: &StepRow) {
        self.steps.lock().unwrap().push(row.clone());
    }
    fn phase(&self, phase: Phase) {
        match phase {
            Phase::AfterBackward => self.takes(40),
            Phase::DuringReduce => self.takes(10),
            Phase::BeforeCommit => self.takes(5),
            Phase::AfterCommit => self.takes(3),
            Phase::BeforeForward | Phase::DuringUpload => {}
        }
    }
    fn times(&self, times: StepTimes) {
        self.times.lock().unwrap().push(times);
    }
}

/// A job of three steps.
fn train(rows: u64) -> Arc<Slow> {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 24);
    job["spec"]["train"]["epochs"] = 1.into();
    let clock = ManualClock::starting_at(5_000);
    let slow = Arc::new(Slow { clock: Arc::clone(&clock), rows, steps: Mutex::default(), times: Mutex::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let group = pleach_comm::local(tch::Device::Cpu);
    let job = parse(&job);
    let cx = JobContext {
        tenant: "default".into(),
        id: job.metadata.name.as_str().into(),
        job,
        fence: Fence { term: Term(1), generation: Generation(1) },
        heads: Default::default(),
        recorded: Recorded::at_once(),
        feed: Some(Arc::<Slow>::clone(&slow)),
        group: group.as_ref(),
        observer: Arc::<Slow>::clone(&slow),
        stop: StopSignal::default(),
        runtime: runtime.handle().clone(),
        clock,
    };
    assert_eq!(run_job(cx, &mut Warm::default()).unwrap(), Outcome::Finished);
    slow
}

#[test]
fn the_stages_of_a_step_add_up_to_it() {
    let slow = train(20);
    let (times, steps) = (slow.times.lock().unwrap(), slow.steps.lock().unwrap());
    assert_eq!(times.iter().map(|times| times.step).collect::<Vec<_>>(), [1, 2, 3]);
    let expected = [(Stage::Data, 20), (Stage::Backward, 40), (Stage::Reduce, 10), (Stage::Optimiser, 5)];
    for (number, (times, row)) in times.iter().zip(steps.iter()).enumerate() {
        for (stage, millis) in expected {
            assert_eq!(times.of(stage), Duration::from_millis(millis), "{stage} of step {}", times.step);
        }
        assert_eq!(times.of(Stage::Commit), Duration::from_millis(3));
        // The row is told before what follows the agreement.
        assert_eq!(times.total().saturating_sub(Duration::from_millis(3)).as_secs_f64(), row.seconds);
        assert_eq!(times.begun, Duration::from_millis(5_000 + number as u64 * 78));
        assert_eq!(times.tasks, ["a".into()]);
    }
}

#[test]
fn slow_input_takes_its_share() {
    let share = |rows| {
        let slow = train(rows);
        let times = slow.times.lock().unwrap();
        let of = |time: fn(&StepTimes) -> Duration| times.iter().map(time).sum::<Duration>().as_secs_f64();
        of(|times| times.of(Stage::Data)) / of(StepTimes::total)
    };
    let (ready, slow) = (share(2), share(174));
    assert!((ready - 2.0 / 60.0).abs() < 1e-9 && (slow - 0.75).abs() < 1e-9, "{ready} and {slow}");
}
