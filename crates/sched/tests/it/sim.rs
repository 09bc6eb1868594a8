//! A simulated cluster: workers that follow the protocol of a step, a store that fences, a network that delays, repeats,
//! reorders and cuts, and a coordinator that is nothing but [`State`] and a table of sessions.
//!
//! One seed is one history: its faults are drawn beforehand, so that a failing history can be made smaller by leaving
//! faults out.

mod choice;
mod faults;
mod gangs;
mod history;
mod wire;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::rng::{CounterRng, Key};
use pleach_base::{Fence, Term, WorkerId};
use pleach_sched::invariants::{Auditor, Violation};
use pleach_sched::{Effect, Event, JobKey, JobState, Settings, State};

pub(crate) use choice::{Held, Stored, choose};
pub(crate) use faults::{Fault, draw};
use history::History;
pub(crate) use history::digest;
use wire::Message;
pub(crate) use wire::Order;
use worker::SimWorker;

pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Steps of every simulated job.
pub(crate) const STEPS: u64 = 12;
/// A simulated job has one task.
pub(crate) const TASK: &str = "t";

pub(crate) struct Sim {
    rng: CounterRng,
    pub(crate) now: Duration,
    pub(crate) state: State,
    auditor: Auditor,
    workers: Vec<SimWorker>,
    /// Pairs of workers that do not reach each other, and until when.
    apart: BTreeMap<(usize, usize), Duration>,
    /// Session number of each connected worker, as the coordinator knows it.
    sessions: BTreeMap<WorkerId, u64>,
    network: BTreeMap<(Duration, u64), Message>,
    /// When the last order in the session of a worker arrives: a session keeps order.
    last_order: Vec<Duration>,
    sent: u64,
    /// Whether the coordinator takes in words of workers in batches, and whether it owes a look at everything.
    in_batches: bool,
    owes: bool,
    store: BTreeMap<JobKey, Stored>,
    formed: BTreeSet<(JobKey, Fence)>,
    history: History,
    cancelled: BTreeSet<JobKey>,
    submitted: u64,
    incarnations: u64,
    trace: Option<Vec<String>>,
    summary: Summary,
}

pub(crate) fn settings() -> Settings {
    Settings {
        lease_ttl: Duration::from_secs(3),
        stall_grace: Duration::from_secs(8),
        grace: Duration::from_secs(9),
        settle: Duration::from_millis(400),
        prepare_timeout: Duration::from_secs(6),
        retry: Duration::from_millis(200),
        retry_max: Duration::from_secs(2),
        drain_timeout: Duration::from_secs(8),
        yield_timeout: Duration::from_secs(5),
        deadlock: Duration::from_secs(4),
        bar_max: Duration::from_secs(4),
        ..Settings::default()
    }
}

impl Sim {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Key::seed(seed).named("sched-simulation").rng();
        let count = 1 + rng.below(4);
        Self {
            now: Duration::ZERO,
            state: State::new(Term(1), settings()),
            auditor: Auditor::default(),
            workers: (0..count).map(|n| SimWorker::new(n, n + 1, rng.below(50))).collect(),
            rng,
            apart: BTreeMap::new(),
            sessions: BTreeMap::new(),
            network: BTreeMap::new(),
            last_order: vec![Duration::ZERO; count as usize],
            sent: 0,
            in_batches: false,
            owes: false,
            store: BTreeMap::new(),
            formed: BTreeSet::new(),
            history: History::default(),
            cancelled: BTreeSet::new(),
            submitted: 0,
            incarnations: 100,
            trace: traced.then(Vec::new),
            summary: Summary::default(),
        }
    }

    /// The coordinator takes in words of workers in batches, and looks at everything at the end of each.
    pub(crate) fn in_batches(self) -> Self {
        Self { in_batches: true, ..self }
    }

    /// Faults, then peace until every job has ended.
    ///
    /// # Panics
    /// When a rule is broken.
    pub(crate) fn run(&mut self, faults: &[(Duration, Fault)]) {
        self.submit(0);
        for (at, fault) in faults {
            while self.now < *at {
                self.step();
            }
            self.say(|| format!("fault: {fault:?}"));
            self.fault(fault);
        }
        self.peace();
        let limit = self.now + Duration::from_secs(300);
        while !self.state.jobs.is_empty() {
            self.step();
            assert!(self.now < limit, "progress: {:#?}", self.state);
        }
    }

    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    pub(crate) fn lines(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let line = line()
                .replace("JobKey { tenant: Tenant(\"default\"), job: JobId(\"", "")
                .replace("\") }", "")
                .replace("WorkerId { name: \"", "")
                .replace("\", incarnation: ", "#")
                .replace("Fence { term: Term(", "t")
                .replace("), generation: Generation(", "g");
            trace.push(format!("{:>7.1} {line}", self.now.as_secs_f64()));
        }
    }

    fn step(&mut self) {
        self.now += TICK;
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let message = entry.remove();
            self.deliver(message);
        }
        self.workers_act();
        self.gangs_act();
        self.apply(Event::Tick);
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        if self.trace.is_some() && !matches!(event, Event::Tick | Event::Heartbeat { .. }) {
            self.say(|| format!("  {event:?}"));
        }
        if !(self.in_batches && event.is_of_worker()) {
            self.owes = false;
            let effects = self.state.apply(self.now, event);
            let broken = self.auditor.check(&self.state, &effects);
            return self.carried_out(effects, &broken);
        }
        let (effects, soon) = self.state.hear(self.now, event);
        let broken = self.auditor.check_effects(&self.state, &effects);
        let effects = self.carried_out(effects, &broken);
        self.owes |= soon;
        // Batches are of any length; a tick ends the last one.
        if self.owes && self.chance(30) {
            self.apply(Event::Tick);
        }
        effects
    }

    fn carried_out(&mut self, effects: Vec<Effect>, broken: &[Violation]) -> Vec<Effect> {
        assert!(broken.is_empty(), "{broken:?}");
        for effect in &effects {
            if self.trace.is_some() && !matches!(effect, Effect::Changed { .. }) {
                self.say(|| format!("    -> {effect:?}"));
            }
            self.carry_out(effect);
        }
        effects
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::Released { worker } => {
                self.sessions.remove(worker);
                if let Some(own) = self.workers.iter_mut().find(|own| &own.id == worker) {
                    own.session = None;
                }
            }
            Effect::Changed { job } => self.ended(job),
            other => {
                self.no_step_lost(other);
                if let Some((worker, order)) = Order::of(other) {
                    self.order(&worker, order);
                }
            }
        }
    }

    /// A gang without any state of the newest record is formed only when nobody within reach has it either.
    fn no_step_lost(&mut self, effect: &Effect) {
        let Effect::Assign { assignment, .. } = effect else { return };
        // Orders are repeated; a gang is formed once.
        if !self.formed.insert((assignment.job.clone(), assignment.fence)) {
            return;
        }
        let Some(newest) = assignment.heads.get(&TASK.into()).and_then(|head| head.recent.back()) else { return };
        let holds = |worker: &&SimWorker| worker.alive && worker.holds(&assignment.job, newest);
        let member = |worker: &&SimWorker| assignment.members.iter().any(|member| member.worker == worker.id);
        let newer = |worker: &&SimWorker| worker.alive && worker.holds_after(&assignment.job, newest);
        if self.workers.iter().filter(member).any(|worker| holds(&worker) || newer(&worker)) {
            return;
        }
        let reached = |worker: &&SimWorker| self.state.worker(&worker.id).is_some_and(|w| w.available(self.now));
        let left_out = self.workers.iter().filter(holds).filter(reached).find(|worker| !member(worker));
        let stored = self.store.get(&assignment.job).map_or(0, |stored| stored.step);
        let kept = self.state.jobs.get(&assignment.job).is_some_and(|job| self.now < job.keep_until);
        if let Some(worker) = left_out.filter(|_| kept && stored < newest.step.0) {
            panic!(
                "no-step-lost-while-one-worker-lives: {} holds step {} of {}",
                worker.id, newest.step, assignment.job
            );
        }
    }

    /// Judges a job that has ended; it is deleted in the next tick.
    fn ended(&mut self, key: &JobKey) {
        let Some(job) = self.state.jobs.get(key).filter(|job| job.state.is_terminal()).cloned() else { return };
        if !self.history.end(key) {
            return;
        }
        self.summary.generations += job.generation.0;
        match job.state {
            JobState::Succeeded => {
                self.summary.succeeded += 1;
                let stored = self.store.get(key).copied().unwrap_or_default();
                assert_eq!(stored.step, STEPS, "{key} succeeded with a store at step {}", stored.step);
                self.history.check(key, stored.fence, stored.digest);
            }
            JobState::Cancelled => {
                assert!(self.cancelled.contains(key), "nobody cancelled {key}");
                self.summary.cancelled += 1;
            }
            _ => {
                assert!(job.failures_in_a_row > job.needs.restarts, "{key} failed: {job:?}");
                self.summary.spent += 1;
            }
        }
        let delete = Message::ToCoordinator { event: Event::Deleted { job: key.clone() }, from: 0, opens: None };
        self.send(self.now, delete);
    }

    fn send(&mut self, at: Duration, message: Message) {
        self.sent += 1;
        self.network.insert((at, self.sent), message);
    }

    fn delay(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.rng.below(most_ms))
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }
}

/// How histories ended.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) succeeded: u64,
    pub(crate) cancelled: u64,
    pub(crate) spent: u64,
    pub(crate) generations: u64,
    /// Generations that went on from a rank's memory, from the store, and from nothing.
    pub(crate) resumed: [u64; 3],
    /// Steps whose record was in nobody's memory when a generation went on before them.
    pub(crate) remade: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.cancelled += other.cancelled;
        self.spent += other.spent;
        self.generations += other.generations;
        self.remade += other.remade;
        for (sum, one) in self.resumed.iter_mut().zip(other.resumed) {
            *sum += one;
        }
    }
}

fn refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Refused { .. }))
}
