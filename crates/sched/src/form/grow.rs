//! Running jobs take in workers that nobody else waits for, and keep spares ready.

use std::time::Duration;

use pleach_base::WorkerId;

use super::choose::Pool;
use crate::apply::count;
use crate::effect::StopMode;
use crate::gang::EndingWhy;
use crate::job::{JobKey, JobState};
use crate::state::{State, Turn};

/// How many times the gathering time a ready worker waits at most for others that still get ready.
const GATHER_LIMIT: u32 = 4;

impl State {
    pub(super) fn grow(&mut self, turn: &mut Turn, pool: &mut Pool) {
        for key in self.in_order(|job| matches!(job.state, JobState::Running | JobState::Starting)) {
            let Some(job) = self.jobs.get(&key) else { continue };
            let Some(gang) = &job.gang else { continue };
            let (world, formed_at) = (gang.world(), gang.formed_at);
            let calm = job.state == JobState::Running && gang.ending.is_none() && gang.trouble.is_none();
            let room = job.needs.most().saturating_sub(world);
            if room == 0 {
                continue;
            }
            let joiners = self.choose(&key, room, pool);
            for id in &joiners {
                self.prepare(turn, &key, id);
            }
            if calm && turn.now >= formed_at + self.settings.grow_every && self.gathered(turn.now, &key, &joiners, room)
            {
                let ready = joiners.iter().filter(|id| self.is_ready(id, &key)).count();
                let reason = format!("{} can join the {world} in use", count(ready, "ready worker"));
                self.drain(turn, &key, EndingWhy::Reform, StopMode::Yield, reason);
            }
        }
    }

    /// Whether those that are ready should wait no longer for others: joiners that come close together join together.
    fn gathered(&self, now: Duration, key: &JobKey, joiners: &[WorkerId], room: usize) -> bool {
        let ready_at = |id: &WorkerId| self.worker(id).filter(|w| w.is_ready_for(key))?.warm.as_ref()?.ready_at;
        let times: Vec<_> = joiners.iter().filter_map(ready_at).collect();
        let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else { return false };
        let gather = self.settings.gather;
        let all = times.len() == joiners.len();
        (all && (times.len() == room || now >= *last + gather)) || now >= *first + gather * GATHER_LIMIT
    }

    /// Whoever is left gets ready for the first job that may need it one day.
    pub(super) fn spares(&mut self, turn: &mut Turn, pool: Pool) {
        let running = self.in_order(|job| matches!(job.state, JobState::Running | JobState::Starting));
        let Some(key) = running.first() else { return };
        for free in pool.free.iter().filter(|free| free.warm.is_none()) {
            self.prepare(turn, key, &free.id);
        }
    }
}
