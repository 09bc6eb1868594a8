//! One state of the small world, and every way in which it can go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Debug, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use pleach_base::{Fence, Term, WorkerId};
use pleach_sched::invariants::Auditor;
use pleach_sched::{Assignment, Effect, Event, JobState, Needs, Part, Report, Settings, State};

use super::ledger::Ledger;
use super::worker::{Hashed, Move, Worker};
use super::{LANES, Scope, TASKS, WORKERS, job, steps};
use crate::sim::{Order, Stored};

/// Times without anything else to do, in a row or not, after which a history counts as stuck.
const QUIETS: u8 = 12;

/// What is under way to the coordinator.
#[derive(Debug)]
enum Call {
    /// A worker registers and opens its session.
    Join(WorkerId),
    /// The session of a process that died breaks.
    Broken(WorkerId),
    Says(Event),
}

#[derive(Clone)]
pub(super) struct World {
    now: Duration,
    quiets: u8,
    state: Rc<State>,
    auditor: Rc<Auditor>,
    /// Hash of the state and the auditor.
    brain: u64,
    pub(super) workers: [Worker; WORKERS],
    /// Workers with a session, as the coordinator sees it.
    sessions: BTreeSet<usize>,
    /// In no order: the network repeats no more of it than the scope allows.
    calls: BTreeMap<u64, (Rc<Call>, u8)>,
    pub(super) store: [Stored; TASKS.len()],
    pub(super) ledger: Rc<Ledger>,
    formed: Fence,
    left: Scope,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A call arrives.
    Hear(u64),
    /// A call arrives, and will once more.
    HearTwice(u64),
    /// The next order of a worker arrives.
    Obey(usize),
    Respawn(usize),
    Ranks(Move),
    Crash(usize),
    RestartCoordinator,
    /// Nothing else can happen but that time passes.
    Quiet,
}

struct Fingerprint(DefaultHasher);

impl fmt::Write for Fingerprint {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

pub(super) fn hashed(value: &impl Debug) -> u64 {
    let mut print = Fingerprint(DefaultHasher::new());
    write!(print, "{value:?}").expect("hashing does not fail");
    print.0.finish()
}

fn settings() -> Settings {
    Settings {
        lease_ttl: Duration::from_secs(3),
        grace: Duration::from_secs(9),
        settle: Duration::ZERO,
        grow_every: Duration::ZERO,
        gather: Duration::ZERO,
        retry: Duration::from_millis(200),
        deadlock: Duration::from_secs(3),
        ..Settings::default()
    }
}

impl World {
    pub(super) fn new(scope: Scope) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            quiets: 0,
            state: Rc::new(State::new(Term(1), settings())),
            auditor: Rc::default(),
            brain: 0,
            workers: std::array::from_fn(|number| Worker::new(number, 1)),
            sessions: BTreeSet::new(),
            calls: BTreeMap::new(),
            store: Default::default(),
            ledger: Rc::default(),
            formed: Fence::default(),
            left: scope,
        };
        let needs = Needs { min_workers: 1, max_workers: WORKERS as u32, lanes: LANES, restarts: 9, priority: 0 };
        world.apply(Event::Submitted { job: job(), needs }).expect("a job can be submitted");
        (0..WORKERS).for_each(|index| world.join(index));
        world
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.now, self.quiets, self.brain, &self.workers, &self.sessions).hash(&mut hasher);
        for (hash, (_, copies)) in &self.calls {
            (hash, copies).hash(&mut hasher);
        }
        (&self.store, &self.ledger, self.formed, self.left).hash(&mut hasher);
        hasher.finish()
    }

    /// The job, once it has ended.
    pub(super) fn ended(&self) -> Option<JobState> {
        self.state.jobs.get(&job()).map(|job| job.state).filter(|state| state.is_terminal())
    }

    pub(super) fn actions(&self) -> Vec<Action> {
        let mut moves = Vec::new();
        self.moves(&mut moves);
        // What nothing but a death can come between goes first: when it happens makes no difference to anything else.
        let first: Vec<_> = moves.iter().copied().filter(|action| self.alone(action)).map(Action::Ranks).collect();
        if !first.is_empty() {
            return first.into_iter().chain(self.crashes()).collect();
        }
        let mut found: Vec<_> = self.calls.keys().map(|hash| Action::Hear(*hash)).collect();
        found.extend(moves.into_iter().map(Action::Ranks));
        for (index, worker) in self.workers.iter().enumerate() {
            if !worker.alive {
                found.push(Action::Respawn(index));
            }
            if !worker.orders.is_empty() {
                found.push(Action::Obey(index));
            }
        }
        if found.is_empty() {
            found.push(Action::Quiet);
        }
        if self.left.copies > 0 {
            let says = self.calls.iter().filter(|(_, (call, _))| matches!(**call, Call::Says(_)));
            found.extend(says.map(|(hash, _)| Action::HearTwice(*hash)));
        }
        found.extend(self.crashes());
        if self.left.restarts > 0 {
            found.push(Action::RestartCoordinator);
        }
        found
    }

    fn crashes(&self) -> impl Iterator<Item = Action> {
        (0..WORKERS).filter(|index| self.left.crashes > 0 && self.workers[*index].alive).map(Action::Crash)
    }

    pub(super) fn describe(&self, action: Action) -> String {
        match action {
            Action::Hear(hash) | Action::HearTwice(hash) => format!("hears {:?}", self.calls.get(&hash)),
            Action::Obey(index) => format!("w{index} obeys {:?}", self.workers[index].orders.front()),
            other => format!("{other:?}"),
        }
    }

    /// Does something, and looks at every rule.
    pub(super) fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Hear(hash) => self.hear(hash, false)?,
            Action::HearTwice(hash) => self.hear(hash, true)?,
            Action::Obey(index) => self.obey(index),
            Action::Respawn(index) => {
                self.workers[index] = Worker::new(index, self.workers[index].id.incarnation + 1);
                self.join(index);
            }
            Action::Ranks(action) => self.play(action)?,
            Action::Crash(index) => {
                self.left.crashes -= 1;
                self.end(index);
            }
            Action::RestartCoordinator => self.restart(),
            Action::Quiet => self.quiet()?,
        }
        self.check()
    }

    /// What the coordinator knows, without what it only says.
    fn thoughts(&self) -> u64 {
        let mut jobs = self.state.jobs.clone();
        for job in jobs.values_mut() {
            job.reason.clear();
            if let Some(ending) = job.gang.as_mut().and_then(|gang| gang.ending.as_mut()) {
                ending.reason.clear();
            }
        }
        hashed(&(&self.state.workers, &jobs, &self.state.superseded, &self.state.started_at, &self.auditor))
    }

    fn join(&mut self, index: usize) {
        self.call(Call::Join(self.workers[index].id.clone()));
    }

    fn call(&mut self, call: Call) {
        self.calls.entry(hashed(&call)).or_insert_with(|| (Rc::new(call), 0)).1 += 1;
    }

    pub(super) fn report(&mut self, index: usize, part: Part, report: Report) {
        let worker = self.workers[index].id.clone();
        self.call(Call::Says(Event::Reported { worker, part, report }));
    }

    /// A word that changes nothing that others depend on need not wait on its way.
    pub(super) fn told_at_once(&mut self, index: usize, part: Part, report: Report) -> Result<(), String> {
        let worker = self.workers[index].id.clone();
        self.apply(Event::Reported { worker, part, report }).map(|_| ())
    }

    fn hear(&mut self, hash: u64, again: bool) -> Result<(), String> {
        let Some((call, copies)) = self.calls.get_mut(&hash) else { return Ok(()) };
        let call = Rc::clone(call);
        if again {
            self.left.copies -= 1;
        } else {
            *copies -= 1;
            if *copies == 0 {
                self.calls.remove(&hash);
            }
        }
        match &*call {
            Call::Join(id) => self.joins(id),
            Call::Broken(id) => {
                self.sessions.retain(|index| self.workers[*index].id != *id);
                self.apply(Event::Disconnected { worker: id.clone() }).map(|_| ())
            }
            Call::Says(event) => {
                let refused = self.apply(event.clone())?;
                if let (Event::Reported { worker, part, report: Report::Committed { commits } }, false) =
                    (event, refused)
                    && let Some(index) = self.index(worker)
                {
                    self.recorded(index, part, commits);
                    self.tell(index, part);
                }
                Ok(())
            }
        }
    }

    /// Whether records of a worker are under way.
    pub(super) fn tells(&self, id: &WorkerId) -> bool {
        self.calls.values().any(|(call, _)| {
            matches!(&**call, Call::Says(Event::Reported { worker, report: Report::Committed { .. }, .. }) if worker == id)
        })
    }

    fn index(&self, id: &WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| &worker.id == id)
    }

    fn joins(&mut self, id: &WorkerId) -> Result<(), String> {
        let (worker, host) = (id.clone(), id.name.clone());
        if self.apply(Event::Registered { worker, host, rendezvous_port: 1, pulse_port: 2 })? {
            // Something took its name: the process ends, and another one is started.
            if let Some(index) = self.index(id).filter(|index| self.workers[*index].alive) {
                self.end(index);
            }
            return Ok(());
        }
        let index = self.index(id).filter(|index| self.workers[*index].alive);
        let Some(index) = index else {
            // The process died before the answer came.
            self.apply(Event::Connected { worker: id.clone() })?;
            self.call(Call::Broken(id.clone()));
            return Ok(());
        };
        self.workers[index].session = true;
        self.sessions.insert(index);
        self.apply(Event::Connected { worker: id.clone() })?;
        if self.workers[index].work.is_some() {
            let beat = self.beat(index);
            self.call(Call::Says(beat));
        }
        Ok(())
    }

    fn beat(&self, index: usize) -> Event {
        let worker = &self.workers[index];
        let part = worker.work.as_ref().map(|work| work.part());
        let (worker, idle) = (worker.id.clone(), worker.work.is_none());
        Event::Heartbeat { worker, progress: 0, idle, draining: false, part, compute_us: 0 }
    }

    /// Whether the event was refused.
    fn apply(&mut self, event: Event) -> Result<bool, String> {
        let effects = Rc::make_mut(&mut self.state).apply(self.now, event);
        let broken = Rc::make_mut(&mut self.auditor).check(&self.state, &effects);
        if !broken.is_empty() {
            return Err(format!("{broken:?}"));
        }
        self.brain = self.thoughts();
        for effect in &effects {
            if let Effect::Assign { assignment, .. } = effect {
                self.no_step_lost(assignment)?;
            }
            if let Effect::Released { worker } = effect
                && let Some(index) = self.index(worker)
            {
                self.sessions.remove(&index);
                self.workers[index].session = false;
                self.workers[index].orders.clear();
                if self.workers[index].alive {
                    self.join(index);
                }
            }
            if let Some((to, order)) = Order::of(effect)
                && let Some(index) = self.index(&to).filter(|index| self.sessions.contains(index))
                && self.workers[index].alive
            {
                self.workers[index].orders.push_back(Hashed(hashed(&order), Rc::new(order)));
                self.get_ready(index);
            }
        }
        Ok(effects.iter().any(|effect| matches!(effect, Effect::Refused { .. })))
    }

    /// A gang without the newest recorded step is formed only when nobody within reach holds it.
    fn no_step_lost(&mut self, assignment: &Assignment) -> Result<(), String> {
        if assignment.fence <= self.formed {
            return Ok(());
        }
        self.formed = assignment.fence;
        for (task, stored) in self.store.iter().enumerate() {
            let head = assignment.heads.get(&TASKS[task].into());
            let Some(newest) = head.and_then(|head| head.recent.back()).filter(|newest| newest.step.0 > stored.step)
            else {
                continue;
            };
            let holders = self.workers.iter().filter(|worker| worker.alive && worker.holds(task, newest));
            let (members, others): (Vec<_>, Vec<_>) =
                holders.partition(|worker| assignment.members.iter().any(|member| member.worker == worker.id));
            let within =
                |worker: &&&Worker| self.state.worker(&worker.id).is_some_and(|known| known.available(self.now));
            if let Some(left_out) = others.iter().find(within).filter(|_| members.is_empty()) {
                return Err(format!("no-step-lost-while-one-worker-lives: {} holds {newest:?}", left_out.id));
            }
        }
        Ok(())
    }

    fn end(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        (worker.alive, worker.work, worker.held) = (false, None, Default::default());
        worker.orders = VecDeque::new();
        // A registration is not sent again by anybody: it ends with the process.
        self.calls.retain(|_, (call, _)| !matches!(&**call, Call::Join(id) if *id == worker.id));
        if std::mem::take(&mut worker.session) {
            let broken = Call::Broken(worker.id.clone());
            self.call(broken);
        }
    }

    /// The coordinator dies; the next one knows only what was stored: the jobs. Reports are sent until they are answered.
    fn restart(&mut self) {
        self.left.restarts -= 1;
        let stored = serde_json::to_string(&self.state.jobs).expect("jobs can be written");
        let jobs: BTreeMap<_, pleach_sched::Job> = serde_json::from_str(&stored).expect("and read");
        self.state = Rc::new(State::recover(Term(self.state.term.0 + 1), settings(), jobs));
        self.brain = self.thoughts();
        self.sessions.clear();
        self.calls.retain(|_, (call, _)| matches!(**call, Call::Says(Event::Reported { .. })));
        for index in 0..WORKERS {
            self.workers[index].session = false;
            self.workers[index].orders.clear();
            if self.workers[index].alive {
                self.join(index);
            }
        }
    }

    /// Time passes: workers say that they live, send again what was not answered, and say that they wait.
    fn quiet(&mut self) -> Result<(), String> {
        self.quiets += 1;
        if self.quiets > QUIETS {
            return Err(format!("progress: nothing happens any more: {:#?}", self.state.jobs));
        }
        for _ in 0..4 {
            self.now += Duration::from_secs(1);
            for index in 0..WORKERS {
                if self.workers[index].alive && self.workers[index].session {
                    self.apply(self.beat(index))?;
                }
            }
            self.apply(Event::Tick)?;
        }
        for index in 0..WORKERS {
            let Some(part) = self.workers[index].work.as_ref().map(|work| work.part()) else { continue };
            self.tell(index, &part);
            if self.stalls(index) {
                self.report(index, part, Report::Stalled { suspects: Vec::new() });
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let end = self.ended();
        if end.is_some_and(|end| end != JobState::Succeeded) {
            return Err(format!("the job did not succeed: {:?}", self.state.jobs));
        }
        for (task, stored) in self.store.iter().enumerate() {
            let states = self.ledger.effective(task)?;
            if states.get(stored.step as usize) != Some(&stored.digest) {
                return Err(format!("the store holds {stored:?}, the history that counts led to {states:x?}"));
            }
            if end.is_some() && (stored.step, states.len() as u64) != (steps(task), steps(task) + 1) {
                return Err(format!("the job succeeded with {stored:?} after {} steps", states.len() - 1));
            }
            let newest = self.ledger.newest(task);
            for index in (0..WORKERS).filter(|index| newest.is_some_and(|fence| self.trains(*index, fence))) {
                if self.workers[index].held[task].last().map(|held| &held.digest) != states.last() {
                    return Err(format!("{} holds another state than the one that counts", self.workers[index].id));
                }
            }
        }
        Ok(())
    }
}
