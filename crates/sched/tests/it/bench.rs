//! A test bench: a state, a clock, and short words for events.

use std::collections::BTreeSet;
use std::time::Duration;

use pleach_base::{Step, Term, WorkerId};
use pleach_sched::invariants::Auditor;
use pleach_sched::{
    Assignment, Effect, Event, Failure, Job, JobKey, JobState, Needs, Part, Report, Settings, State, StopMode,
};

pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) now: Duration,
    auditor: Auditor,
    /// Workers that do not get ready by themselves.
    pub(crate) slow: BTreeSet<String>,
}

pub(crate) fn key(job: &str) -> JobKey {
    JobKey::new("default", job)
}

pub(crate) fn worker(name: &str, incarnation: u64) -> WorkerId {
    WorkerId { name: name.into(), incarnation }
}

pub(crate) fn needs(min: u32, max: u32) -> Needs {
    Needs { min_workers: min, max_workers: max, lanes: max, restarts: 3, priority: 0 }
}

pub(crate) fn failure(code: &str) -> Failure {
    Failure { code: code.into(), message: "it broke".into(), hint: String::new() }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            state: State::new(Term(1), Settings::default()),
            now: Duration::ZERO,
            auditor: Auditor::default(),
            slow: BTreeSet::new(),
        }
    }

    /// Applies an event; workers that are asked to get ready answer at once, unless they are slow.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.state.apply(self.now, event);
        assert_eq!(self.auditor.check(&self.state, &effects), []);
        for (worker, part) in prepares(&effects) {
            if !self.slow.contains(&worker.name) {
                effects.extend(self.apply(Event::Reported { worker, part, report: Report::Prepared }));
            }
        }
        effects
    }

    /// A slow worker has got ready.
    pub(crate) fn prepared(&mut self, name: &str, incarnation: u64) -> Vec<Effect> {
        let worker = worker(name, incarnation);
        let warm = self.state.worker(&worker).unwrap().warm.clone().unwrap();
        let part = Part { job: warm.job, fence: warm.fence };
        self.apply(Event::Reported { worker, part, report: Report::Prepared })
    }

    pub(crate) fn submit(&mut self, job: &str, needs: Needs) -> Vec<Effect> {
        self.apply(Event::Submitted { job: key(job), needs })
    }

    pub(crate) fn join(&mut self, name: &str, incarnation: u64) -> Vec<Effect> {
        let worker = worker(name, incarnation);
        let mut effects = self.apply(Event::Registered {
            worker: worker.clone(),
            host: "h".into(),
            rendezvous_port: 9,
            pulse_port: 0,
        });
        effects.extend(self.apply(Event::Connected { worker }));
        effects
    }

    pub(crate) fn beat(&mut self, name: &str, incarnation: u64, progress: u64, idle: bool) -> Vec<Effect> {
        let worker = worker(name, incarnation);
        self.apply(Event::Heartbeat { worker, progress, idle, draining: false, part: None, compute_us: 0 })
    }

    pub(crate) fn report(&mut self, name: &str, incarnation: u64, job: &str, report: Report) -> Vec<Effect> {
        let fence = self.job(job).fence();
        let part = Part { job: key(job), fence };
        self.apply(Event::Reported { worker: worker(name, incarnation), part, report })
    }

    /// Lets time pass in small ticks; the workers `alive` make progress and say so.
    pub(crate) fn pass(&mut self, time: Duration, alive: &[(&str, u64)]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            for (name, incarnation) in alive {
                let Some(worker) = self.state.worker(&worker(name, *incarnation)) else { continue };
                let (progress, idle) = (worker.progress + 1, worker.job.is_none());
                effects.extend(self.beat(name, *incarnation, progress, idle));
            }
            effects.extend(self.apply(Event::Tick));
        }
        effects
    }

    pub(crate) fn job(&self, job: &str) -> &Job {
        &self.state.jobs[&key(job)]
    }

    pub(crate) fn state_of(&self, job: &str) -> (JobState, u64) {
        (self.job(job).state, self.job(job).generation.0)
    }

    /// Two workers `a`, `b` that train `job` in generation 1.
    pub(crate) fn running(job: &str, needs: Needs) -> Self {
        let mut bench = Self::new();
        bench.join("a", 1);
        bench.join("b", 1);
        bench.submit(job, needs);
        bench.pass(Duration::from_secs(3), &[("a", 1), ("b", 1)]);
        bench.report("a", 1, job, Report::Ready);
        bench.report("b", 1, job, Report::Ready);
        assert_eq!(bench.state_of(job), (JobState::Running, 1));
        bench
    }
}

pub(crate) fn assignments(effects: &[Effect]) -> Vec<(String, Assignment)> {
    let find = |effect: &Effect| match effect {
        Effect::Assign { worker, assignment } => Some((worker.name.clone(), assignment.clone())),
        _ => None,
    };
    effects.iter().filter_map(find).collect()
}

pub(crate) fn prepares(effects: &[Effect]) -> Vec<(WorkerId, Part)> {
    let find = |effect: &Effect| match effect {
        Effect::Prepare { worker, job, fence, .. } => Some((worker.clone(), Part { job: job.clone(), fence: *fence })),
        _ => None,
    };
    effects.iter().filter_map(find).collect()
}

pub(crate) fn stops(effects: &[Effect]) -> Vec<(String, StopMode)> {
    let find = |effect: &Effect| match effect {
        Effect::Stop { worker, mode, .. } => Some((worker.name.clone(), *mode)),
        _ => None,
    };
    effects.iter().filter_map(find).collect()
}

pub(crate) fn refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Refused { .. }))
}

pub(crate) fn durable(step: u64) -> Report {
    Report::Durable { step: Step(step) }
}
