//! A simulated cluster: workers that train, a store that fences, a network that delays, repeats, reorders and cuts, and
//! a coordinator that is nothing but [`State`] and a table of sessions. One seed is one history.

mod chaos;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::rng::{CounterRng, Key};
use pleach_base::{Fence, Step, Term, WorkerId};
use pleach_sched::invariants::Auditor;
use pleach_sched::{Assignment, Effect, Event, JobKey, JobState, Part, Settings, State, StopMode};

use worker::SimWorker;

pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Steps of every simulated job.
pub(crate) const STEPS: u64 = 30;

/// What travels.
enum Message {
    /// From worker number `from`, which opens session `opens` with it if that is set.
    ToCoordinator { event: Event, from: usize, opens: Option<u64> },
    /// An order in a session.
    ToWorker { to: usize, session: u64, order: Order },
    /// A session breaks, as the coordinator sees it.
    Broken { session: u64 },
}

#[derive(Clone)]
pub(crate) enum Order {
    Assign(Assignment),
    Prepare(Part),
    Stop { part: Option<(JobKey, Fence)>, mode: StopMode },
}

/// What the object store knows of a job.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stored {
    fence: Fence,
    step: u64,
}

pub(crate) struct Sim {
    pub(crate) seed: u64,
    pub(crate) rng: CounterRng,
    pub(crate) now: Duration,
    pub(crate) state: State,
    auditor: Auditor,
    workers: Vec<SimWorker>,
    /// Session number of each connected worker, as the coordinator knows it.
    sessions: BTreeMap<WorkerId, u64>,
    network: BTreeMap<(Duration, u64), Message>,
    /// When the last order in the session of a worker arrives: a session keeps order.
    last_order: Vec<Duration>,
    sent: u64,
    store: BTreeMap<JobKey, Stored>,
    cancelled: BTreeSet<JobKey>,
    submitted: u64,
    incarnations: u64,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Key::seed(seed).named("sched-simulation").rng();
        let count = 1 + rng.below(5);
        let settings = Settings {
            lease_ttl: Duration::from_secs(3),
            stall_grace: Duration::from_secs(8),
            grace: Duration::from_secs(12),
            settle: Duration::from_millis(500),
            prepare_timeout: Duration::from_secs(8),
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(10),
            yield_timeout: Duration::from_secs(5),
            bar_max: Duration::from_secs(5),
            ..Settings::default()
        };
        Self {
            seed,
            rng,
            now: Duration::ZERO,
            state: State::new(Term(1), settings),
            auditor: Auditor::default(),
            workers: (0..count).map(|n| SimWorker::new(n, n + 1)).collect(),
            sessions: BTreeMap::new(),
            network: BTreeMap::new(),
            last_order: vec![Duration::ZERO; count as usize],
            sent: 0,
            store: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            submitted: 0,
            incarnations: 100,
        }
    }

    /// Faults for a while, then peace until every job has ended. Panics with the seed when a rule is broken.
    pub(crate) fn run(mut self) -> Summary {
        let chaos_ends = Duration::from_secs(5 + self.rng.below(25));
        while self.now < chaos_ends {
            self.fault();
            self.step();
        }
        self.peace();
        let limit = self.now + Duration::from_secs(600);
        while !self.state.jobs.values().all(|job| job.state.is_terminal()) {
            self.step();
            assert!(self.now < limit, "seed {}: progress: {:#?}", self.seed, self.state);
        }
        self.verdict()
    }

    fn step(&mut self) {
        self.now += TICK;
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let message = entry.remove();
            self.deliver(message);
        }
        self.workers_act();
        self.groups_act();
        self.apply(Event::Tick);
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.state.apply(self.now, event.clone());
        let broken = self.auditor.check(&self.state, &effects);
        assert!(broken.is_empty(), "seed {} at {:?}: {broken:?} after {event:?}", self.seed, self.now);
        for effect in &effects {
            match effect {
                Effect::Assign { worker, assignment } => self.order(worker, Order::Assign(assignment.clone())),
                Effect::Prepare { worker, job, fence, .. } => {
                    self.order(worker, Order::Prepare(Part { job: job.clone(), fence: *fence }));
                }
                Effect::Stop { worker, part, mode, .. } => {
                    self.order(worker, Order::Stop { part: part.clone(), mode: *mode });
                }
                Effect::Released { worker } => {
                    self.sessions.remove(worker);
                    if let Some(own) = self.workers.iter_mut().find(|own| &own.id == worker) {
                        own.session = None;
                    }
                }
                Effect::Changed { job } => self.succeeded_means_stored(job),
                _ => {}
            }
        }
        effects
    }

    fn succeeded_means_stored(&self, key: &JobKey) {
        if self.state.jobs.get(key).is_some_and(|job| job.state == JobState::Succeeded) {
            let step = self.store.get(key).map_or(0, |stored| stored.step);
            assert_eq!(step, STEPS, "seed {}: {key} succeeded with a store at step {step}", self.seed);
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToCoordinator { event, from, opens } => {
                let who = match &event {
                    Event::Connected { worker } => Some(worker.clone()),
                    _ => None,
                };
                let effects = self.apply(event);
                if let (Some(session), Some(id)) = (opens.filter(|_| !refused(&effects)), who) {
                    self.opened(from, id, session, effects);
                }
            }
            Message::ToWorker { to, session, order } => {
                let worker = &self.workers[to];
                if worker.alive && worker.session == Some(session) && !worker.cut(self.now) {
                    self.obey(to, order);
                }
            }
            Message::Broken { session } => {
                let of = self.sessions.iter().find(|(_, number)| **number == session).map(|(id, _)| id.clone());
                if let Some(worker) = of {
                    self.sessions.remove(&worker);
                    self.apply(Event::Disconnected { worker });
                }
            }
        }
    }

    fn opened(&mut self, from: usize, id: WorkerId, session: u64, effects: Vec<Effect>) {
        self.sessions.insert(id.clone(), session);
        if self.workers[from].id == id && self.workers[from].alive {
            self.workers[from].session = Some(session);
        } else {
            // The process died before the answer came: the connection breaks.
            let at = self.now + self.delay(800);
            self.send(at, Message::Broken { session });
        }
        // What `Connected` led to could not be sent before the session stood.
        for effect in effects {
            match effect {
                Effect::Assign { worker, assignment } => self.order(&worker, Order::Assign(assignment)),
                Effect::Prepare { worker, job, fence, .. } => {
                    self.order(&worker, Order::Prepare(Part { job, fence }));
                }
                _ => {}
            }
        }
    }

    fn order(&mut self, to: &WorkerId, order: Order) {
        let Some(session) = self.sessions.get(to).copied() else { return };
        let Some(index) = self.workers.iter().position(|worker| &worker.id == to) else { return };
        let at = (self.now + self.delay(300)).max(self.last_order[index]);
        self.last_order[index] = at;
        self.send(at, Message::ToWorker { to: index, session, order });
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

    fn verdict(self) -> Summary {
        let mut summary = Summary::default();
        for (key, job) in &self.state.jobs {
            summary.generations += job.generation.0;
            match job.state {
                JobState::Succeeded => summary.succeeded += 1,
                JobState::Cancelled => {
                    assert!(self.cancelled.contains(key), "seed {}: nobody cancelled {key}", self.seed);
                    summary.cancelled += 1;
                }
                _ => {
                    assert!(job.restarts > job.needs.restarts, "seed {}: {key} failed: {job:?}", self.seed);
                    summary.spent += 1;
                }
            }
            assert!(job.durable <= Step(STEPS));
        }
        summary
    }
}

/// How a history ended.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) succeeded: u64,
    pub(crate) cancelled: u64,
    pub(crate) spent: u64,
    pub(crate) generations: u64,
}

fn refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Refused { .. }))
}
