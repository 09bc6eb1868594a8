//! Who gets workers: queued jobs in order, then running ones that could use more.
//!
//! A job that waits reserves the free workers up to its maximum, so that a stream of small jobs cannot starve a large one.
//! Only a job that needs more workers than are alive at all is passed over.

use std::time::Duration;

use pleach_base::WorkerId;

use crate::apply::count;
use crate::effect::Effect;
use crate::gang::{EndingWhy, Gang, Member, MemberState};
use crate::job::{Job, JobKey, JobState};
use crate::lanes;
use crate::state::{State, Turn};

/// How many settle times a job waits at most once it has enough workers, while more keep joining.
const SETTLE_LIMIT: u32 = 3;

impl State {
    pub(crate) fn schedule(&mut self, turn: &mut Turn) {
        let alive = self.workers.values().filter(|worker| worker.usable()).count();
        let mut free: Vec<_> =
            self.workers.values().filter(|worker| worker.available()).map(|w| w.id.clone()).collect();
        for key in self.in_order(|job| job.state == JobState::Queued) {
            let Some(job) = self.jobs.get(&key) else { continue };
            let (least, most) = (job.needs.least(), job.needs.most());
            if alive < least {
                self.waits(turn, &key, format!("needs {}, {alive} alive", count(least, "worker")));
                continue;
            }
            let reserved: Vec<_> = free.drain(..most.min(free.len())).collect();
            if reserved.len() < least {
                self.waits(turn, &key, format!("needs {}, {} free", count(least, "worker"), reserved.len()));
            } else if let Some(why) = self.not_yet(turn.now, &key, &reserved) {
                self.set_state(turn, &key, JobState::Queued, why);
            } else {
                self.form(turn, &key, &reserved);
            }
        }
        self.grow(turn, free);
    }

    fn in_order(&self, wanted: impl Fn(&Job) -> bool) -> Vec<JobKey> {
        let mut keys: Vec<_> =
            self.jobs.iter().filter(|(_, job)| wanted(job)).map(|(key, job)| (job.order, key.clone())).collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn waits(&mut self, turn: &mut Turn, key: &JobKey, what: String) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.enough_since = None;
        }
        self.set_state(turn, key, JobState::Queued, what);
    }

    /// Why a job with enough workers does not start this moment, if there is a reason.
    fn not_yet(&mut self, now: Duration, key: &JobKey, workers: &[WorkerId]) -> Option<String> {
        let settle = self.settings.settle;
        let newest = workers.iter().filter_map(|id| self.worker(id)).map(|worker| worker.joined_at).max()?;
        let job = self.jobs.get_mut(key)?;
        let since = *job.enough_since.get_or_insert(now);
        if now < job.hold_until {
            return Some(job.reason.clone());
        }
        let settled = (newest + settle).min(since + settle * SETTLE_LIMIT);
        let most = job.needs.most();
        (workers.len() < most && now < settled)
            .then(|| format!("{} ready, waits a moment for up to {most}", count(workers.len(), "worker")))
    }

    /// Forms the next generation of a job from `workers`, which become ranks in this order.
    fn form(&mut self, turn: &mut Turn, key: &JobKey, workers: &[WorkerId]) {
        let term = self.term;
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.generation = job.generation.next();
        job.term = term;
        job.enough_since = None;
        let (generation, lanes) = (job.generation, job.needs.lanes);
        let maps = lanes::assign(lanes, u32::try_from(workers.len()).unwrap_or(u32::MAX));
        let mut members = Vec::with_capacity(workers.len());
        for (id, lanes) in workers.iter().zip(maps) {
            let Some(worker) = self.worker_mut(id) else { continue };
            worker.give(key, turn.now);
            let (host, pulse_port) = (worker.host.clone(), worker.pulse_port);
            members.push(Member { worker: id.clone(), host, pulse_port, lanes, state: MemberState::Joining });
        }
        let names: Vec<_> = members.iter().map(|member| member.worker.to_string()).collect();
        let gang = Gang { members, formed_at: turn.now, ending: None };
        if let Some(job) = self.jobs.get_mut(key) {
            job.gang = Some(gang);
        }
        let who = format!(
            "generation {generation}: {} for {}",
            count(workers.len(), "worker"),
            count(lanes as usize, "lane")
        );
        turn.note(Some(key), "GangFormed", None, format!("{who} ({})", names.join(", ")));
        self.set_state(turn, key, JobState::Starting, format!("{who}; ranks load the model"));
        for id in workers {
            if let Some(assignment) = self.assignment(id) {
                turn.push(Effect::Assign { worker: id.clone(), assignment });
            }
        }
    }

    /// Lets running jobs take in workers that nobody else waits for.
    fn grow(&mut self, turn: &mut Turn, mut free: Vec<WorkerId>) {
        for key in self.in_order(|job| job.state == JobState::Running) {
            let Some(job) = self.jobs.get(&key) else { continue };
            let Some(gang) = job.gang.as_ref().filter(|gang| gang.ending.is_none()) else { continue };
            let room = job.needs.most().saturating_sub(gang.world()).min(free.len());
            let due = turn.now >= gang.formed_at + self.settings.grow_every;
            if room == 0 || !due {
                continue;
            }
            let joiners: Vec<_> = free.drain(..room).collect();
            let newest = joiners.iter().filter_map(|id| self.worker(id)).map(|worker| worker.joined_at).max();
            let complete = gang.world() + room == job.needs.most();
            if complete || newest.is_none_or(|joined| turn.now >= joined + self.settings.settle) {
                let reason = format!("{} can join the {} in use", count(room, "free worker"), gang.world());
                self.drain(turn, &key, EndingWhy::Reform, reason);
            }
        }
    }
}
