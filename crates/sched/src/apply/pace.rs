//! Workers that are slower than their gang.

use pleach_base::WorkerId;

use crate::effect::StopMode;
use crate::gang::EndingWhy;
use crate::job::{JobKey, JobState};
use crate::state::{State, Turn};

/// Percent of the median from which a worker counts as slow.
const SLOW: u32 = 200;

impl State {
    /// Takes in how long a worker computed in its last step.
    pub(super) fn paced(&mut self, turn: &mut Turn, id: &WorkerId, compute_us: u64) {
        let Some(worker) = self.worker_mut(id).filter(|worker| worker.job.is_some()) else { return };
        worker.pace.compute_us = compute_us;
        let Some(key) = worker.job.clone() else { return };
        let percent = self.percent_of_median(&key, compute_us);
        let slow_after = self.settings.slow_after;
        let Some(worker) = self.worker_mut(id) else { return };
        worker.pace.percent = percent;
        if percent <= SLOW {
            worker.pace.slow_since = None;
            return;
        }
        let since = *worker.pace.slow_since.get_or_insert(turn.now);
        if !worker.pace.told && turn.now >= since + slow_after {
            worker.pace.told = true;
            self.straggles(turn, &key, id, percent);
        }
    }

    /// Percent of the median of the gang's members that tell; 0 when fewer than two others do.
    fn percent_of_median(&self, key: &JobKey, own: u64) -> u32 {
        let members = self.jobs.get(key).and_then(|job| job.gang.as_ref()).map(|gang| &gang.members);
        let told = |worker: &WorkerId| self.worker(worker).map(|worker| worker.pace.compute_us).filter(|us| *us > 0);
        let mut all: Vec<u64> = members.into_iter().flatten().filter_map(|member| told(&member.worker)).collect();
        all.sort_unstable();
        if own == 0 || all.len() < 2 {
            return 0;
        }
        // The lower middle: in a pair the faster one is the measure.
        let median = all[(all.len() - 1) / 2].max(1);
        u32::try_from(own.saturating_mul(100) / median).unwrap_or(u32::MAX)
    }

    fn straggles(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId, percent: u32) {
        let times = f64::from(percent) / 100.0;
        let message = format!("{id} computes {times:.1} times as long as the median of its gang");
        turn.note(Some(key), "Straggler", Some(id), message.clone());
        let spare = self.workers.values().any(|w| w.available(turn.now) && !w.pace.told && w.is_ready_for(key));
        let running = self.jobs.get(key).is_some_and(|job| job.state == JobState::Running);
        if spare && running {
            self.drain(turn, key, EndingWhy::Reform, StopMode::Yield, format!("{message}; a spare takes its place"));
        }
    }
}
