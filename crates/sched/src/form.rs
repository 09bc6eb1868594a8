//! Who gets workers: waiting jobs by priority and age, then running ones that could use more, then spares.
//!
//! A job that waits reserves the free workers up to its maximum, so that a stream of small jobs cannot starve a large one.
//! Only a job that needs more workers than are there at all is passed over.

mod choose;
mod gang;
mod grow;
mod preempt;
mod why;

use std::time::Duration;

use pleach_base::WorkerId;

use crate::apply::count;
use crate::gang::Gang;
use crate::job::{Job, JobKey, JobState};
use crate::state::{State, Turn};

use choose::Pool;

/// How many settle times a job waits at most once it has enough workers, while more join or get ready.
const SETTLE_LIMIT: u32 = 3;

impl State {
    pub(crate) fn schedule(&mut self, turn: &mut Turn) {
        if self.nobody_needs_workers(turn.now) {
            return;
        }
        let mut pool = self.pool(turn.now);
        let present = self.workers.values().filter(|worker| worker.counts()).count();
        for key in self.in_order(|job| job.state == JobState::Queued) {
            self.wait_or_form(turn, &key, &mut pool, present);
        }
        self.grow(turn, &mut pool);
        self.spares(turn, pool);
    }

    /// The usual case, in which no list of free workers is made: nobody waits or could use more, and every spare was asked
    /// to get ready.
    fn nobody_needs_workers(&self, now: Duration) -> bool {
        let mut works = false;
        for job in self.jobs.values() {
            let at_work = matches!(job.state, JobState::Running | JobState::Starting);
            let world = job.gang.as_ref().map_or(usize::MAX, Gang::world);
            if job.state == JobState::Queued || at_work && world < job.needs.most() {
                return false;
            }
            works |= at_work;
        }
        !works || !self.workers.values().any(|worker| worker.warm.is_none() && worker.available(now))
    }

    pub(crate) fn in_order(&self, wanted: impl Fn(&Job) -> bool) -> Vec<JobKey> {
        let mut keys: Vec<_> =
            self.jobs.iter().filter(|(_, job)| wanted(job)).map(|(key, job)| (job.place(), key.clone())).collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn wait_or_form(&mut self, turn: &mut Turn, key: &JobKey, pool: &mut Pool, present: usize) {
        let Some((least, most)) = self.jobs.get(key).map(|job| (job.needs.least(), job.needs.most())) else { return };
        if present < least {
            let why = self.why_waiting(turn.now, key, &[], least);
            return self.waits(turn, key, format!("needs {}, {present} alive{why}", count(least, "worker")));
        }
        let chosen = self.choose(key, most, pool);
        for id in &chosen {
            self.prepare(turn, key, id);
        }
        let ready: Vec<_> = chosen.iter().filter(|id| self.is_ready(id, key)).cloned().collect();
        if ready.len() < least {
            let reason = match self.make_room(turn, key, chosen.len(), least) {
                Some(room) if chosen.len() < least => room,
                _ => {
                    let why = self.why_waiting(turn.now, key, &chosen, least);
                    format!("{} of {} needed{why}", ready.len(), count(least, "worker"))
                }
            };
            self.waits(turn, key, reason);
        } else if let Some(why) = self.not_yet(turn.now, key, &chosen, ready.len()) {
            self.set_state(turn, key, JobState::Queued, why);
        } else {
            let ranks = self.place(key, &ready);
            self.form(turn, key, &ranks);
        }
    }

    pub(crate) fn is_ready(&self, id: &WorkerId, key: &JobKey) -> bool {
        self.worker(id).is_some_and(|worker| worker.is_ready_for(key))
    }

    fn waits(&mut self, turn: &mut Turn, key: &JobKey, what: String) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.enough_since = None;
        }
        self.set_state(turn, key, JobState::Queued, what);
    }

    /// The worker to wait for because it holds the newest step: of those that are there, while it gets ready; and when none
    /// of them holds it, one that lives, as far as is known, and has no session at the moment. That one is waited for even
    /// when nothing is recorded: it may hold steps of which the word is still under way.
    fn holder_to_wait_for(&self, now: Duration, key: &JobKey, chosen: &[WorkerId]) -> Option<&WorkerId> {
        let job = self.jobs.get(key).filter(|job| now < job.keep_until)?;
        match job.holders.iter().find(|id| chosen.contains(id)) {
            Some(there) => (!self.is_ready(there, key) && !job.heads.is_empty()).then_some(there),
            None => job.holders.iter().find(|id| self.may_come_back(now, id)),
        }
    }

    /// Whether a worker without a session may still live: it holds a lease, or the leader is so new that it could not have
    /// heard of all yet.
    fn may_come_back(&self, now: Duration, id: &WorkerId) -> bool {
        match self.workers.get(&id.name) {
            Some(worker) => worker.id == *id && !worker.connected && !worker.draining && !worker.suspected,
            None => self.started_at.is_none_or(|started| now < started + self.settings.lease_ttl),
        }
    }

    /// Why a job with enough ready workers does not start this moment, if there is a reason.
    fn not_yet(&mut self, now: Duration, key: &JobKey, chosen: &[WorkerId], ready: usize) -> Option<String> {
        let settle = self.settings.settle;
        let newest = chosen.iter().filter_map(|id| self.worker(id)).map(|worker| worker.joined_at).max()?;
        let job = self.jobs.get_mut(key)?;
        let since = *job.enough_since.get_or_insert(now);
        if now < job.hold_until {
            return Some(job.reason.clone());
        }
        if let Some(holder) = self.holder_to_wait_for(now, key, chosen) {
            return Some(format!("waits for {holder}, which holds the newest step"));
        }
        let job = self.jobs.get(key)?;
        let most = job.needs.most();
        if job.hurry || ready >= most {
            return None;
        }
        let settled = if ready == chosen.len() { newest + settle } else { Duration::MAX };
        (now < settled.min(since + settle * SETTLE_LIMIT))
            .then(|| format!("{} ready, waits a moment for up to {most}", count(ready, "worker")))
    }
}
