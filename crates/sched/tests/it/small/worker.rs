//! Modelled workers without a clock: whatever one can do next is an action, and every order of actions is played.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use pleach_base::{Fence, Step, WorkerId};
use pleach_sched::{Assignment, Commit, Failure, Part, Report, StopMode};

use super::world::World;
use super::{TASKS, job, steps};
use crate::sim::{Held, Order, choose, digest};

#[derive(Clone, Debug, Hash)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) alive: bool,
    pub(super) session: bool,
    /// In the order in which they arrive; with what they hash to.
    pub(super) orders: VecDeque<Hashed<Order>>,
    seen: BTreeSet<Fence>,
    pub(super) work: Option<Work>,
    pub(super) held: [Vec<Held>; TASKS.len()],
}

/// Something and its hash, which stands for it.
#[derive(Clone, Debug)]
pub(super) struct Hashed<T>(pub(super) u64, pub(super) Rc<T>);

impl<T> std::hash::Hash for Hashed<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Work {
    assignment: Hashed<Assignment>,
    ends: Option<StopModeKey>,
    settled: bool,
    /// The task whose step is made, and on which this rank has not seen all agree.
    current: Option<usize>,
    acked: [u64; TASKS.len()],
    pub(super) unsent: Vec<Hashed<Commit>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum StopModeKey {
    Drain,
    Yield,
}

impl Work {
    fn new(hash: u64, assignment: Assignment) -> Self {
        Self {
            assignment: Hashed(hash, Rc::new(assignment)),
            ends: None,
            settled: false,
            current: None,
            acked: [0; TASKS.len()],
            unsent: Vec::new(),
        }
    }

    pub(super) fn fence(&self) -> Fence {
        self.assignment.1.fence
    }

    pub(super) fn part(&self) -> Part {
        Part { job: job(), fence: self.fence() }
    }

    fn leads(&self) -> bool {
        self.assignment.1.rank == 0
    }

    fn head(&self, task: usize) -> pleach_sched::Head {
        self.assignment.1.heads.get(&TASKS[task].into()).cloned().unwrap_or_default()
    }
}

impl Worker {
    pub(super) fn new(number: usize, incarnation: u64) -> Self {
        Self {
            id: WorkerId { name: format!("w{number}"), incarnation },
            alive: true,
            session: false,
            orders: VecDeque::new(),
            seen: BTreeSet::new(),
            work: None,
            held: Default::default(),
        }
    }

    pub(super) fn step(&self, task: usize) -> u64 {
        self.held[task].last().map_or(0, |held| held.step)
    }

    /// Whether it holds what is recorded, or something newer that may be gone on from.
    pub(super) fn holds(&self, task: usize, newest: &Commit) -> bool {
        self.held[task].iter().any(|held| {
            held.step == newest.step.0 && format!("{:x}", held.digest) == newest.digest
                || held.step > newest.step.0 && held.agreed && held.fence >= newest.fence
        })
    }
}

/// Recorded steps after which one is uploaded.
const UPLOAD_EVERY: u64 = 2;

/// Steps that may be made before the first of them is recorded.
const MAX_LAG: usize = 2;

/// What ranks can do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Move {
    Settle(usize),
    Compute(usize),
    Learn(usize),
    Leave(usize),
    Finish(usize),
    Upload(usize, usize),
    GiveUp(usize),
}

impl World {
    /// The ranks of the gang that a worker leads, when all are there.
    fn ranks(&self, leader: usize) -> Option<Vec<usize>> {
        let work = self.workers[leader].work.as_ref().filter(|work| work.leads())?;
        let find = |id: &WorkerId| {
            self.workers.iter().position(|worker| {
                &worker.id == id && worker.work.as_ref().is_some_and(|other| other.fence() == work.fence())
            })
        };
        work.assignment.1.members.iter().map(|member| find(&member.worker)).collect()
    }

    /// Ranks whose connection to a worker is closed: they died, or went on elsewhere.
    fn closed(&self, index: usize) -> Vec<u32> {
        let Some(work) = &self.workers[index].work else { return Vec::new() };
        let is_closed = |id: &WorkerId| {
            let peer = self.workers.iter().find(|worker| &worker.id == id && worker.alive);
            peer.is_none_or(|peer| {
                let same = peer.work.as_ref().is_some_and(|other| other.fence() == work.fence());
                !same && peer.seen.contains(&work.fence())
            })
        };
        let members = work.assignment.1.members.iter().enumerate();
        members.filter(|(_, member)| is_closed(&member.worker)).map(|(rank, _)| rank as u32).collect()
    }

    pub(super) fn moves(&self, found: &mut Vec<Move>) {
        for index in 0..self.workers.len() {
            let Some(work) = &self.workers[index].work else { continue };
            if work.current.is_some() {
                found.push(Move::Learn(index));
            }
            if !self.closed(index).is_empty() {
                found.push(Move::GiveUp(index));
            }
            if work.leads() && work.settled {
                found.extend(
                    (0..TASKS.len()).filter(|task| self.due(work, *task)).map(|task| Move::Upload(index, task)),
                );
            }
            if let Some(ranks) = self.ranks(index) {
                self.joint(index, &ranks, found);
            }
        }
    }

    /// Whether no other worker and no word of the coordinator can make a difference to a move.
    pub(super) fn alone(&self, action: &Move) -> bool {
        match action {
            Move::Upload(..) => true,
            Move::Learn(index) => self.closed(*index).is_empty() && self.workers[*index].orders.is_empty(),
            _ => false,
        }
    }

    fn due(&self, work: &Work, task: usize) -> bool {
        let (acked, stored) = (work.acked[task], self.store[task].step);
        acked >= stored + UPLOAD_EVERY || acked == steps(task) && stored < steps(task)
    }

    /// What the ranks of a gang can do together.
    fn joint(&self, leader: usize, ranks: &[usize], found: &mut Vec<Move>) {
        let works: Vec<_> = ranks.iter().filter_map(|index| self.workers[*index].work.as_ref()).collect();
        if !works.iter().all(|work| work.settled) {
            return found.push(Move::Settle(leader));
        }
        if works.iter().any(|work| work.current.is_some()) {
            return;
        }
        let ends = works.iter().find_map(|work| work.ends);
        let stored = |task: usize| self.store[task].step == self.workers[leader].step(task);
        let next = self.next_task(leader);
        let may = |task: usize| works[0].unsent.len() < MAX_LAG && !self.due(works[0], task);
        if next.is_none() && (0..TASKS.len()).all(stored) {
            found.push(Move::Finish(leader));
        } else if ends == Some(StopModeKey::Yield) || ends.is_some() && (0..TASKS.len()).all(stored) {
            found.push(Move::Leave(leader));
        } else if ends.is_none() && next.is_some_and(may) {
            found.push(Move::Compute(leader));
        }
    }

    /// Tasks take turns.
    fn next_task(&self, leader: usize) -> Option<usize> {
        let made = (0..TASKS.len()).map(|task| (self.workers[leader].step(task), task));
        made.filter(|(step, task)| *step < steps(*task)).min().map(|(_, task)| task)
    }

    pub(super) fn play(&mut self, action: Move) -> Result<(), String> {
        match action {
            Move::Settle(leader) => return self.settle(leader),
            Move::Compute(leader) => return self.compute(leader),
            Move::Learn(index) => return self.learn(index),
            Move::Leave(leader) => self.leave(leader, &Report::Drained),
            Move::Finish(leader) => self.leave(leader, &Report::Finished),
            Move::Upload(index, task) => return self.upload(index, task),
            Move::GiveUp(index) => self.give_up(index, self.closed(index)),
        }
        Ok(())
    }

    fn settle(&mut self, leader: usize) -> Result<(), String> {
        let (Some(ranks), Some(work)) = (self.ranks(leader), self.workers[leader].work.clone()) else { return Ok(()) };
        for task in 0..TASKS.len() {
            let head = work.head(task);
            let all = ranks.iter().flat_map(|index| &self.workers[*index].held[task]);
            let (chosen, _) = choose(&head, all, self.store[task]);
            Rc::make_mut(&mut self.ledger).resume(task, work.fence(), chosen.step, chosen.fence)?;
            let recorded = chosen.step.min(head.step().0);
            for index in &ranks {
                let worker = &mut self.workers[*index];
                worker.held[task] = vec![chosen.clone()];
                if let Some(work) = &mut worker.work {
                    (work.settled, work.acked[task]) = (true, recorded);
                }
            }
            if chosen.step > recorded {
                self.record(leader, task, &chosen);
            }
        }
        for index in ranks {
            self.report(index, work.part(), Report::Ready);
        }
        Ok(())
    }

    fn compute(&mut self, leader: usize) -> Result<(), String> {
        let (Some(ranks), Some(task)) = (self.ranks(leader), self.next_task(leader)) else { return Ok(()) };
        let acked = self.workers[leader].work.as_ref().map_or(0, |work| work.acked[task]);
        let mut came_out = BTreeSet::new();
        for index in ranks {
            let worker = &mut self.workers[index];
            let (before, step) = (worker.held[task].last().map_or(0, |held| held.digest), worker.step(task) + 1);
            let Some(work) = &mut worker.work else { continue };
            (work.current, work.acked[task]) = (Some(task), work.acked[task].max(acked));
            let fence = work.fence();
            let lanes = &work.assignment.1.members[work.assignment.1.rank].lanes;
            Rc::make_mut(&mut self.ledger).feed(task, fence, step, lanes);
            let state = digest(before, step, fence);
            came_out.insert((step, state));
            worker.held[task].retain(|held| held.step >= acked);
            worker.held[task].push(Held { step, digest: state, fence, agreed: false });
        }
        if came_out.len() == 1 { Ok(()) } else { Err(format!("ranks-agree-on-digest: {came_out:?}")) }
    }

    /// A rank sees that all have made the step. Another may die before it does.
    fn learn(&mut self, index: usize) -> Result<(), String> {
        let worker = &mut self.workers[index];
        let Some(work) = &mut worker.work else { return Ok(()) };
        let Some(task) = work.current.take() else { return Ok(()) };
        let (leads, part) = (work.leads(), work.part());
        let Some(last) = worker.held[task].last_mut() else { return Err("a step without a state".into()) };
        last.agreed = true;
        if leads {
            let last = last.clone();
            self.record(index, task, &last);
            self.tell(index, &part);
        }
        Ok(())
    }

    fn record(&mut self, index: usize, task: usize, held: &Held) {
        let Some(work) = &mut self.workers[index].work else { return };
        let commit = Commit {
            task: TASKS[task].into(),
            step: Step(held.step),
            fence: work.fence(),
            digest: format!("{:x}", held.digest),
        };
        work.unsent.push(Hashed(super::world::hashed(&commit), Rc::new(commit)));
    }

    /// Rank 0 sends what is not acknowledged, one report at a time.
    pub(super) fn tell(&mut self, index: usize, part: &Part) {
        let Some(work) = self.workers[index].work.as_ref().filter(|work| work.part() == *part) else { return };
        let commits: Vec<_> = work.unsent.iter().map(|commit| (*commit.1).clone()).collect();
        if !commits.is_empty() && !self.tells(&self.workers[index].id) {
            self.report(index, part.clone(), Report::Committed { commits });
        }
    }

    /// The coordinator has taken records.
    pub(super) fn recorded(&mut self, index: usize, part: &Part, commits: &[Commit]) {
        let Some(work) = self.workers[index].work.as_mut().filter(|work| work.part() == *part) else { return };
        for commit in commits {
            work.unsent.retain(|unsent| unsent.1.task != commit.task || unsent.1.step > commit.step);
            if let Some(task) = TASKS.iter().position(|task| commit.task == (*task).into()) {
                work.acked[task] = work.acked[task].max(commit.step.0);
            }
        }
    }

    fn upload(&mut self, index: usize, task: usize) -> Result<(), String> {
        let Some(work) = &self.workers[index].work else { return Ok(()) };
        let (part, acked) = (work.part(), work.acked[task]);
        let Some(state) = self.workers[index].held[task].iter().find(|held| held.step == acked).cloned() else {
            return Ok(());
        };
        let stored = &mut self.store[task];
        if stored.fence > part.fence {
            self.give_up(index, Vec::new());
            return Ok(());
        }
        (stored.fence, stored.step, stored.digest) = (part.fence, state.step, state.digest);
        self.told_at_once(index, part, Report::Durable { step: Step(state.step) })
    }

    fn leave(&mut self, leader: usize, last: &Report) {
        for index in self.ranks(leader).unwrap_or_default() {
            if let Some(work) = self.workers[index].work.take() {
                self.report(index, work.part(), last.clone());
            }
        }
    }

    fn give_up(&mut self, index: usize, suspects: Vec<u32>) {
        if let Some(work) = self.workers[index].work.take() {
            let failure = Failure { code: "PL0501".into(), message: "a peer is gone".into(), hint: String::new() };
            self.report(index, work.part(), Report::Failed { failure, permanent: false, suspects });
        }
    }

    /// To get ready changes nothing that others see before the answer arrives: a worker without work does it at once.
    pub(super) fn get_ready(&mut self, index: usize) {
        let worker = &self.workers[index];
        let first = worker.orders.front().map(|order| Rc::clone(&order.1));
        if worker.work.is_none() && first.is_some_and(|order| matches!(*order, Order::Prepare(_))) {
            self.obey(index);
        }
    }

    pub(super) fn obey(&mut self, index: usize) {
        let Some(Hashed(hash, order)) = self.workers[index].orders.pop_front() else { return };
        let worker = &mut self.workers[index];
        match &*order {
            Order::Prepare(part) => {
                worker.work = None;
                self.report(index, part.clone(), Report::Prepared);
            }
            Order::Assign(assignment) => {
                if worker.seen.insert(assignment.fence) {
                    worker.work = Some(Work::new(hash, assignment.clone()));
                }
            }
            Order::Stop { part, mode } => {
                let Some(work) = &mut worker.work else { return };
                if part.as_ref().is_some_and(|(_, fence)| *fence != work.fence()) {
                    return;
                }
                match mode {
                    StopMode::Abort => worker.work = None,
                    StopMode::Drain => work.ends = Some(StopModeKey::Drain),
                    StopMode::Yield => work.ends = Some(StopModeKey::Yield),
                }
            }
        }
    }

    /// A rank waits for one that does not come.
    pub(super) fn stalls(&self, index: usize) -> bool {
        let Some(work) = &self.workers[index].work else { return false };
        let leader =
            (0..self.workers.len()).find(|other| self.ranks(*other).is_some_and(|ranks| ranks.contains(&index)));
        leader.is_none() && work.assignment.1.members.len() > 1
    }

    /// Whether a worker trains in the newest generation and has settled.
    pub(super) fn trains(&self, index: usize, fence: Fence) -> bool {
        self.workers[index].work.as_ref().is_some_and(|work| work.settled && work.fence() == fence)
    }
}
