//! A new leader: gangs of the one before go on, and their members come back one by one.

use std::time::Duration;

use pleach_base::WorkerId;

use crate::event::Part;
use crate::job::JobState;
use crate::state::{State, Turn};

impl State {
    /// The first event of a leader: times of the leader before were on another clock.
    pub(super) fn begin(&mut self, now: Duration) {
        if self.started_at.is_some() {
            return;
        }
        self.started_at = Some(now);
        for worker in self.workers.values_mut() {
            (worker.joined_at, worker.heard_at, worker.progress_at) = (now, now, now);
        }
        // Jobs that wait give the members of their last gang time to come back.
        let grace = self.settings.grace;
        self.jobs.values_mut().filter(|job| job.gang.is_none()).for_each(|job| job.keep_until = now + grace);
        let (drain, yields) = (self.settings.drain_timeout, self.settings.yield_timeout);
        for gang in self.jobs.values_mut().filter_map(|job| job.gang.as_mut()) {
            gang.formed_at = now;
            if let Some(ending) = &mut gang.ending {
                ending.deadline = now + if ending.mode == crate::StopMode::Yield { yields } else { drain };
            }
        }
    }

    /// A member of a gang that the leader before had formed says that it still works in it.
    pub(super) fn reattached(&mut self, turn: &mut Turn, id: &WorkerId, part: &Part) {
        let Some(worker) = self.worker_mut(id).filter(|worker| !worker.confirmed) else { return };
        worker.confirmed = true;
        let message = format!("{id} works on in {} since before this leader", part.fence);
        turn.note(Some(&part.job), "Reattached", Some(id), message);
        let Some(job) = self.jobs.get(&part.job).filter(|job| job.state == JobState::Running) else { return };
        let Some(gang) = &job.gang else { return };
        if gang.members.iter().all(|member| self.worker(&member.worker).is_none_or(|worker| worker.confirmed)) {
            let reason = format!("generation {} trains on {}", job.generation, super::count(gang.world(), "worker"));
            self.set_state(turn, &part.job, JobState::Running, reason);
        }
    }
}
