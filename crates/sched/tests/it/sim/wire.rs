//! What travels between workers and the coordinator.

use std::time::Duration;

use pleach_base::{Fence, WorkerId};
use pleach_sched::{Assignment, Effect, Event, JobKey, Part, Report, StopMode};

use super::{Sim, refused};

pub(super) enum Message {
    /// From worker number `from`, which opens session `opens` with it if that is set.
    ToCoordinator { event: Event, from: usize, opens: Option<u64> },
    /// An order in a session.
    ToWorker { to: usize, session: u64, order: Order },
    /// A session breaks, as the coordinator sees it.
    Broken { session: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum Order {
    Assign(Assignment),
    Prepare(Part),
    Stop { part: Option<(JobKey, Fence)>, mode: StopMode },
}

impl Order {
    pub(crate) fn of(effect: &Effect) -> Option<(WorkerId, Self)> {
        match effect {
            Effect::Assign { worker, assignment } => Some((worker.clone(), Self::Assign(assignment.clone()))),
            Effect::Prepare { worker, job, fence, .. } => {
                Some((worker.clone(), Self::Prepare(Part { job: job.clone(), fence: *fence })))
            }
            Effect::Stop { worker, part, mode, .. } => {
                Some((worker.clone(), Self::Stop { part: part.clone(), mode: *mode }))
            }
            _ => None,
        }
    }
}

impl Sim {
    pub(super) fn deliver(&mut self, message: Message) {
        match message {
            Message::ToCoordinator { event, from, opens } => self.hear(event, from, opens),
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

    fn hear(&mut self, event: Event, from: usize, opens: Option<u64>) {
        let who = match &event {
            Event::Connected { worker } => Some(worker.clone()),
            _ => None,
        };
        let commits = match &event {
            Event::Reported { worker, part, report: Report::Committed { commits } } => {
                Some((worker.clone(), part.clone(), commits.last().map_or(0, |commit| commit.step.0)))
            }
            _ => None,
        };
        let current = commits.as_ref().is_some_and(|(worker, part, _)| {
            let job = self.state.jobs.get(&part.job).filter(|job| job.fence() == part.fence);
            job.and_then(|job| job.gang.as_ref()?.rank_of(worker)).is_some() && self.state.worker(worker).is_some()
        });
        let registers = match &event {
            Event::Registered { worker, .. } => Some(worker.clone()),
            _ => None,
        };
        let effects = self.apply(event);
        if registers.is_some_and(|id| refused(&effects) && self.workers[from].id == id) {
            // Something took its name: the process ends, and another one is started.
            self.kill(from);
        }
        if let Some((worker, part, step)) = commits {
            assert!(!current || !refused(&effects), "a rank of the current gang was refused: {effects:?}");
            // The answer may get lost; then the records are sent again.
            let own = self.workers[from].id == worker && !self.chance(10);
            if own && !refused(&effects) {
                self.recorded(from, &part, step);
            }
        }
        if let (Some(session), Some(id)) = (opens.filter(|_| !refused(&effects)), who) {
            self.opened(from, id, session, &effects);
        }
    }

    fn opened(&mut self, from: usize, id: WorkerId, session: u64, effects: &[Effect]) {
        if self.state.worker(&id).is_none() {
            return;
        }
        self.sessions.insert(id.clone(), session);
        if self.workers[from].id == id && self.workers[from].alive {
            self.workers[from].session = Some(session);
            self.workers[from].contact = self.now;
        } else {
            // The process died before the answer came: the connection breaks.
            let at = self.now + self.delay(800);
            self.send(at, Message::Broken { session });
        }
        // What `Connected` led to could not be sent before the session stood.
        for (worker, order) in effects.iter().filter_map(Order::of).filter(|(worker, _)| worker == &id) {
            self.order(&worker, order);
        }
    }

    pub(super) fn order(&mut self, to: &WorkerId, order: Order) {
        let Some(session) = self.sessions.get(to).copied() else { return };
        let Some(index) = self.workers.iter().position(|worker| &worker.id == to) else { return };
        let at = (self.now + self.delay(300)).max(self.last_order[index]);
        self.last_order[index] = at;
        self.send(at, Message::ToWorker { to: index, session, order });
    }

    /// A unary call: it arrives late, perhaps twice, perhaps after newer ones, and after a cut only when that ends.
    pub(super) fn report(&mut self, index: usize, part: Part, report: Report) {
        let worker = self.workers[index].id.clone();
        let from = self.workers[index].cut_until.max(self.now);
        let copies = if self.chance(20) { 2 } else { 1 };
        for _ in 0..copies {
            let at = from + self.delay(600);
            let event = Event::Reported { worker: worker.clone(), part: part.clone(), report: report.clone() };
            self.send(at, Message::ToCoordinator { event, from: index, opens: None });
        }
    }

    pub(super) fn break_session(&mut self, index: usize) {
        if let Some(session) = self.workers[index].session.take() {
            let at = self.now + self.delay(800);
            self.send(at, Message::Broken { session });
        }
    }

    pub(super) fn join(&mut self, index: usize, id: WorkerId) {
        let at = self.now + self.delay(300);
        let event = Event::Registered { worker: id.clone(), host: id.name.clone(), rendezvous_port: 1, pulse_port: 2 };
        self.send(at, Message::ToCoordinator { event, from: index, opens: None });
        self.sent += 1;
        let opens = Some(self.sent);
        let at = at + Duration::from_millis(1) + self.delay(300);
        self.send(at, Message::ToCoordinator { event: Event::Connected { worker: id }, from: index, opens });
    }
}
