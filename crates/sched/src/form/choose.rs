//! Which free workers a job gets.

use std::collections::BTreeMap;
use std::time::Duration;

use pleach_base::WorkerId;

use crate::job::{JobKey, JobState};
use crate::state::State;

/// Workers that are free, and those among them that are kept for a job whose state they hold.
pub(crate) struct Pool {
    pub(crate) free: Vec<WorkerId>,
    kept: BTreeMap<WorkerId, JobKey>,
}

impl State {
    pub(crate) fn pool(&self, now: Duration) -> Pool {
        let free = self.workers.values().filter(|worker| worker.available(now)).map(|w| w.id.clone()).collect();
        let mut kept = BTreeMap::new();
        for (key, job) in self.jobs.iter().filter(|(_, job)| job.state == JobState::Queued && now < job.keep_until) {
            // Without a recorded step there is nothing to keep.
            if job.heads.values().any(|head| !head.recent.is_empty()) {
                for id in job.holders.iter().filter(|id| self.is_ready(id, key)) {
                    kept.insert(id.clone(), key.clone());
                }
            }
        }
        Pool { free, kept }
    }

    /// Takes up to `most` workers out of the pool: those first that need least to take part.
    pub(crate) fn choose(&self, key: &JobKey, most: usize, pool: &mut Pool) -> Vec<WorkerId> {
        let mine = |id: &&WorkerId| pool.kept.get(*id).is_none_or(|of| of == key);
        let mut chosen: Vec<_> = pool.free.iter().filter(mine).map(|id| (self.distance(id, key), id.clone())).collect();
        chosen.sort();
        let chosen: Vec<_> = chosen.into_iter().take(most).map(|(_, id)| id).collect();
        pool.free.retain(|id| !chosen.contains(id));
        chosen
    }

    /// How far a worker is from taking part: a holder of the state is nearest, a slow one farthest.
    fn distance(&self, id: &WorkerId, key: &JobKey) -> (bool, bool, u8, usize) {
        let job = self.jobs.get(key);
        let held = job.and_then(|job| job.holders.iter().position(|holder| holder == id));
        let Some(worker) = self.worker(id) else { return (true, true, 9, 0) };
        let warmth = match &worker.warm {
            Some(warm) if &warm.job == key => u8::from(warm.ready_at.is_none()),
            None => 2,
            Some(_) => 3,
        };
        (worker.pace.told, held.is_none(), warmth, held.unwrap_or_default())
    }
}
