//! Simulated workers: orders, leases, what they hold in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::{Fence, Step, WorkerId};
use pleach_sched::{Assignment, Commit, Event, Failure, JobKey, Part, Report, StopMode};

use super::choice::Held;
use super::wire::{Message, Order};
use super::{STEPS, Sim, TASK};

pub(super) struct SimWorker {
    pub(super) id: WorkerId,
    pub(super) alive: bool,
    pub(super) respawn_at: Option<Duration>,
    pub(super) paused_until: Duration,
    pub(super) cut_until: Duration,
    pub(super) session: Option<u64>,
    /// When the coordinator was last reached.
    pub(super) contact: Duration,
    pub(super) draining: bool,
    /// Getting ready takes so much longer.
    pub(super) slow: Duration,
    /// Its clock goes wrong by so many percent.
    skew: u64,
    pub(super) progress: u64,
    next_beat: Duration,
    next_join: Duration,
    pub(super) seen: BTreeSet<(JobKey, Fence)>,
    pub(super) work: Option<Work>,
    prepares: Option<(Part, Duration)>,
    /// States of the job that it is warm for: from the last recorded one on.
    pub(super) held: BTreeMap<JobKey, Vec<Held>>,
}

pub(super) struct Work {
    pub(super) assignment: Assignment,
    pub(super) settled: bool,
    /// The step is computed; the ranks have not agreed on it.
    pub(super) computed: bool,
    pub(super) ends: Option<StopMode>,
    pub(super) step: u64,
    /// Records that the coordinator has not acknowledged, and the newest that it has.
    pub(super) unsent: Vec<Commit>,
    pub(super) acked: u64,
    pub(super) next_send: Duration,
    pub(super) stalled: Duration,
    pub(super) next_stall: Duration,
}

impl Work {
    fn new(assignment: Assignment) -> Self {
        Self {
            assignment,
            settled: false,
            computed: false,
            ends: None,
            step: 0,
            unsent: Vec::new(),
            acked: 0,
            next_send: Duration::ZERO,
            stalled: Duration::ZERO,
            next_stall: Duration::from_secs(1),
        }
    }

    pub(super) fn part(&self) -> Part {
        Part { job: self.assignment.job.clone(), fence: self.assignment.fence }
    }
}

impl SimWorker {
    pub(super) fn new(number: u64, incarnation: u64, skew: u64) -> Self {
        Self {
            id: WorkerId { name: format!("w{number}"), incarnation },
            alive: true,
            respawn_at: None,
            paused_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            session: None,
            contact: Duration::ZERO,
            draining: false,
            slow: Duration::ZERO,
            skew,
            progress: 0,
            next_beat: Duration::ZERO,
            next_join: Duration::ZERO,
            seen: BTreeSet::new(),
            work: None,
            prepares: None,
            held: BTreeMap::new(),
        }
    }

    pub(super) fn cut(&self, now: Duration) -> bool {
        now < self.cut_until
    }

    pub(super) fn acts(&self, now: Duration) -> bool {
        self.alive && now >= self.paused_until
    }

    /// A time on this worker's clock.
    fn skewed(&self, time: Duration) -> Duration {
        time * (75 + self.skew as u32) / 100
    }

    /// Whether it holds a state after a record that may be gone on from.
    pub(super) fn holds_after(&self, job: &JobKey, commit: &Commit) -> bool {
        let held = self.held.get(job).into_iter().flatten();
        held.into_iter().any(|held| held.step > commit.step.0 && held.agreed && held.fence >= commit.fence)
    }

    pub(super) fn holds(&self, job: &JobKey, commit: &Commit) -> bool {
        let held = self.held.get(job).into_iter().flatten();
        held.into_iter().any(|held| held.step == commit.step.0 && format!("{:x}", held.digest) == commit.digest)
    }
}

impl Sim {
    pub(super) fn obey(&mut self, index: usize, order: Order) {
        let ready_at = self.now + self.delay(1500) + self.workers[index].slow;
        let worker = &mut self.workers[index];
        match order {
            Order::Prepare(part) => {
                // Whatever it still did is not wanted any more.
                worker.work = None;
                // Another job's model takes the place of what was in memory.
                worker.held.retain(|job, _| *job == part.job);
                worker.prepares = Some((part, ready_at));
            }
            Order::Assign(assignment) => {
                if worker.seen.insert((assignment.job.clone(), assignment.fence)) {
                    worker.held.retain(|job, _| *job == assignment.job);
                    worker.prepares = None;
                    worker.work = Some(Work::new(assignment));
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
                    mode => work.ends = Some(mode),
                }
            }
        }
    }

    /// The coordinator has taken the records up to `step`.
    pub(super) fn recorded(&mut self, index: usize, part: &Part, step: u64) {
        let work = self.workers[index].work.as_mut().filter(|work| work.part() == *part);
        if let Some(work) = work {
            work.acked = work.acked.max(step);
            work.unsent.retain(|commit| commit.step.0 > step);
        }
    }

    /// The rank cannot go on in this generation; it keeps what it holds.
    pub(super) fn give_up(&mut self, index: usize, message: &str, suspects: Vec<u32>) {
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
            if let Some((part, _)) = self.workers[index].prepares.take_if(|(_, at)| self.now >= *at) {
                self.report(index, part, Report::Prepared);
            }
            let worker = &mut self.workers[index];
            if worker.session.is_some() && !worker.cut(self.now) {
                worker.contact = self.now;
            } else if worker.work.is_some() && self.now > worker.contact + worker.skewed(self.state.settings.grace) {
                worker.work = None;
            }
            if worker.draining && worker.work.is_none() && worker.session.is_some() {
                self.kill(index);
            } else if !self.workers[index].cut(self.now) {
                self.talk(index);
            }
        }
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
            worker.next_beat = now + worker.skewed(Duration::from_secs(1));
            let event = Event::Heartbeat {
                worker: worker.id.clone(),
                progress: worker.progress,
                idle: worker.work.is_none() && worker.prepares.is_none(),
                draining: worker.draining,
                part: worker.work.as_ref().map(Work::part),
                compute_us: 0,
            };
            self.send(now + delay, Message::ToCoordinator { event, from: index, opens: None });
        }
    }

    /// Rank 0 tells its records until they are acknowledged, and brings recorded steps to the store.
    pub(super) fn lead(&mut self, index: usize) -> bool {
        let Some(work) = self.workers[index].work.as_mut() else { return false };
        let (part, now) = (work.part(), self.now);
        if !work.unsent.is_empty() && now >= work.next_send {
            work.next_send = now + Duration::from_millis(600);
            let commits = work.unsent.clone();
            self.report(index, part.clone(), Report::Committed { commits });
        }
        let Some(work) = self.workers[index].work.as_ref() else { return false };
        let stored = self.store.entry(part.job.clone()).or_default();
        let due = work.acked >= stored.step + 3 || work.acked >= STEPS || work.ends == Some(StopMode::Drain);
        if due && work.acked > stored.step {
            let held = self.workers[index].held.get(&part.job);
            let Some(state) = held.and_then(|held| held.iter().find(|held| held.step == work.acked)) else {
                return true;
            };
            if stored.fence > part.fence {
                self.give_up(index, "fenced by the store", Vec::new());
                return false;
            }
            (stored.fence, stored.step, stored.digest) = (part.fence, state.step, state.digest);
            let step = Step(state.step);
            self.report(index, part, Report::Durable { step });
        }
        true
    }

    pub(super) fn commit(&self, part: &Part, held: &Held) -> Commit {
        Commit { task: TASK.into(), step: Step(held.step), fence: part.fence, digest: format!("{:x}", held.digest) }
    }
}
