//! Simulated workers, and what a gang of them does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::{Fence, Step, WorkerId};
use pleach_sched::{Assignment, Event, Failure, JobKey, Part, Report, StopMode};

use super::{Message, Order, STEPS, Sim, TICK};

pub(crate) struct SimWorker {
    pub(crate) id: WorkerId,
    pub(crate) alive: bool,
    pub(crate) respawn_at: Option<Duration>,
    pub(crate) paused_until: Duration,
    pub(crate) cut_until: Duration,
    pub(crate) session: Option<u64>,
    pub(crate) draining: bool,
    progress: u64,
    next_beat: Duration,
    next_join: Duration,
    seen: BTreeSet<(JobKey, Fence)>,
    work: Option<Work>,
    prepares: Option<(Part, Duration)>,
}

struct Work {
    assignment: Assignment,
    loaded_at: Duration,
    training: bool,
    drain: bool,
    step: u64,
    stalled: Duration,
}

impl Work {
    fn part(&self) -> Part {
        Part { job: self.assignment.job.clone(), fence: self.assignment.fence }
    }
}

impl SimWorker {
    pub(crate) fn new(number: u64, incarnation: u64) -> Self {
        Self {
            id: WorkerId { name: format!("w{number}"), incarnation },
            alive: true,
            respawn_at: None,
            paused_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            session: None,
            draining: false,
            progress: 0,
            next_beat: Duration::ZERO,
            next_join: Duration::ZERO,
            seen: BTreeSet::new(),
            work: None,
            prepares: None,
        }
    }

    pub(crate) fn cut(&self, now: Duration) -> bool {
        now < self.cut_until
    }

    fn acts(&self, now: Duration) -> bool {
        self.alive && now >= self.paused_until
    }
}

impl Sim {
    pub(super) fn obey(&mut self, index: usize, order: Order) {
        let loaded_at = self.now + self.delay(1500);
        let worker = &mut self.workers[index];
        match order {
            Order::Prepare(part) => worker.prepares = Some((part, loaded_at)),
            Order::Assign(assignment) => {
                if worker.seen.insert((assignment.job.clone(), assignment.fence)) {
                    worker.work = Some(Work {
                        assignment,
                        loaded_at,
                        training: false,
                        drain: false,
                        step: 0,
                        stalled: Duration::ZERO,
                    });
                }
            }
            Order::Stop { part, mode } => {
                let Some(work) = &mut worker.work else { return };
                let own = work.part();
                if part.is_some_and(|(job, fence)| job != own.job || fence != own.fence) {
                    return;
                }
                match mode {
                    StopMode::Abort => worker.work = None,
                    StopMode::Drain if work.training => work.drain = true,
                    StopMode::Drain | StopMode::Yield => {
                        worker.work = None;
                        self.report(index, own, Report::Drained);
                    }
                }
            }
        }
    }

    /// A unary call: it arrives late, perhaps twice, perhaps after newer ones, and after a cut only when that ends.
    fn report(&mut self, index: usize, part: Part, report: Report) {
        let worker = self.workers[index].id.clone();
        let from = self.workers[index].cut_until.max(self.now);
        let copies = if self.chance(20) { 2 } else { 1 };
        for _ in 0..copies {
            let at = from + self.delay(600);
            let event = Event::Reported { worker: worker.clone(), part: part.clone(), report: report.clone() };
            self.send(at, Message::ToCoordinator { event, from: index, opens: None });
        }
    }

    fn give_up(&mut self, index: usize, message: &str, suspects: Vec<u32>) {
        if let Some(work) = self.workers[index].work.take() {
            let failure = Failure { code: "PL0501".into(), message: message.into(), hint: String::new() };
            self.report(index, work.part(), Report::Failed { failure, permanent: false, suspects });
        }
    }

    pub(super) fn workers_act(&mut self) {
        for index in 0..self.workers.len() {
            if self.workers[index].respawn_at.is_some_and(|at| self.now >= at) {
                self.respawn(index);
            }
            if !self.workers[index].acts(self.now) {
                continue;
            }
            if self.workers[index].prepares.as_ref().is_some_and(|(_, at)| self.now >= *at) {
                let (part, _) = self.workers[index].prepares.take().unwrap();
                self.report(index, part, Report::Prepared);
            }
            self.load(index);
            let worker = &self.workers[index];
            if worker.draining && worker.work.is_none() && worker.session.is_some() {
                self.kill(index);
            } else if !worker.cut(self.now) {
                self.talk(index);
            }
        }
    }

    fn load(&mut self, index: usize) {
        let now = self.now;
        let Some(work) = &mut self.workers[index].work else { return };
        if work.training || now < work.loaded_at {
            self.workers[index].progress += 1;
            return;
        }
        let (part, leads) = (work.part(), work.assignment.rank == 0);
        let stored = self.store.entry(part.job.clone()).or_default();
        if leads && part.fence < stored.fence {
            return self.give_up(index, "fenced by the store", Vec::new());
        }
        if leads {
            stored.fence = part.fence;
        }
        work.step = stored.step;
        work.training = true;
        self.report(index, part, Report::Ready);
    }

    fn talk(&mut self, index: usize) {
        let (now, delay) = (self.now, self.delay(400));
        let worker = &mut self.workers[index];
        if worker.session.is_none() {
            if now >= worker.next_join {
                worker.next_join = now + Duration::from_secs(1);
                let id = worker.id.clone();
                self.join(index, id);
            }
        } else if now >= worker.next_beat {
            worker.next_beat = now + Duration::from_secs(1);
            let event = Event::Heartbeat {
                worker: worker.id.clone(),
                progress: worker.progress,
                idle: worker.work.is_none(),
                draining: worker.draining,
                part: worker.work.as_ref().map(Work::part),
                compute_us: 0,
            };
            self.send(now + delay, Message::ToCoordinator { event, from: index, opens: None });
        }
    }

    fn join(&mut self, index: usize, id: WorkerId) {
        let at = self.now + self.delay(300);
        let event = Event::Registered { worker: id.clone(), host: id.name.clone(), rendezvous_port: 1, pulse_port: 2 };
        self.send(at, Message::ToCoordinator { event, from: index, opens: None });
        self.sent += 1;
        let opens = Some(self.sent);
        let at = at + self.delay(300);
        self.send(at, Message::ToCoordinator { event: Event::Connected { worker: id }, from: index, opens });
    }

    /// Gangs whose ranks all train make a step together; the ranks of the others wait, and in the end report whom for.
    pub(super) fn groups_act(&mut self) {
        let mut groups: BTreeMap<(JobKey, Fence), Vec<usize>> = BTreeMap::new();
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(work) = worker.work.as_ref().filter(|work| work.training && worker.acts(self.now)) {
                groups.entry((work.assignment.job.clone(), work.assignment.fence)).or_default().push(index);
            }
        }
        for ((job, fence), present) in groups {
            let world = self.workers[present[0]].work.as_ref().map_or(0, |work| work.assignment.members.len());
            if present.len() == world {
                self.train(&job, fence, &present);
            } else {
                self.wait(&present, world);
            }
        }
    }

    fn wait(&mut self, present: &[usize], world: usize) {
        let ranks: Vec<_> =
            present.iter().filter_map(|index| Some(self.workers[*index].work.as_ref()?.assignment.rank)).collect();
        let missing: Vec<u32> = (0..world).filter(|rank| !ranks.contains(rank)).map(|rank| rank as u32).collect();
        for index in present {
            let Some(work) = &mut self.workers[*index].work else { continue };
            work.stalled += TICK;
            if work.stalled >= Duration::from_secs(2) {
                self.give_up(*index, "a peer is silent", missing.clone());
            } else {
                self.workers[*index].progress += 1;
            }
        }
    }

    fn train(&mut self, job: &JobKey, fence: Fence, ranks: &[usize]) {
        let leads = |work: &Work| work.assignment.rank == 0;
        let leader = ranks.iter().copied().find(|index| self.workers[*index].work.as_ref().is_some_and(leads));
        let Some(leader) = leader else { return };
        // Rank 0's state is broadcast when a gang starts, so its step is everybody's.
        let step = self.workers[leader].work.as_ref().map_or(0, |work| (work.step + 1).min(STEPS));
        let mut drain = false;
        for index in ranks {
            self.workers[*index].progress += 1;
            if let Some(work) = &mut self.workers[*index].work {
                work.stalled = Duration::ZERO;
                work.step = step;
                drain |= work.drain;
            }
        }
        if step.is_multiple_of(3) || step >= STEPS || drain {
            let stored = self.store.entry(job.clone()).or_default();
            if stored.fence > fence {
                return self.give_up(leader, "fenced by the store", Vec::new());
            }
            assert!(step >= stored.step, "seed {}: {job} went back to step {step}", self.seed);
            stored.step = step;
            self.report(leader, Part { job: job.clone(), fence }, Report::Durable { step: Step(step) });
        }
        if step >= STEPS || drain {
            let last = if step >= STEPS { Report::Finished } else { Report::Drained };
            for index in ranks {
                self.workers[*index].work = None;
                self.report(*index, Part { job: job.clone(), fence }, last.clone());
            }
        }
    }
}
