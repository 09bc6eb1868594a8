//! Which free workers a job gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::WorkerId;

use crate::job::{JobKey, JobState};
use crate::state::State;
use crate::worker::Worker;

/// Workers that are free, and those among them that are kept for a job whose state they hold.
pub(crate) struct Pool {
    /// In the order of their names.
    pub(crate) free: Vec<Free>,
    kept: BTreeMap<WorkerId, JobKey>,
}

/// A free worker, as far as a choice depends on it: jobs choose among thousands of them one after the other.
pub(crate) struct Free {
    pub(crate) id: WorkerId,
    slow: bool,
    /// The job that it is ready for or gets ready for, and whether it is.
    pub(crate) warm: Option<(JobKey, bool)>,
}

/// How far a worker is from taking part: a holder of the state is nearest, a slow one farthest.
type Distance = (bool, bool, u8, usize);

impl State {
    pub(crate) fn pool(&self, now: Duration) -> Pool {
        let free = |worker: &Worker| Free {
            id: worker.id.clone(),
            slow: worker.pace.told,
            warm: worker.warm.as_ref().map(|warm| (warm.job.clone(), warm.ready_at.is_some())),
        };
        let free = self.workers.values().filter(|worker| worker.available(now)).map(free).collect();
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
        let holders = self.jobs.get(key).map(|job| job.holders.as_slice()).unwrap_or_default();
        let mine = |free: &Free| pool.kept.is_empty() || pool.kept.get(&free.id).is_none_or(|of| of == key);
        let places = pool.free.iter().enumerate().filter(|(_, free)| mine(free));
        let mut near: Vec<_> = places.map(|(place, free)| (distance(free, key, holders), place)).collect();
        if near.len() > most {
            near.select_nth_unstable(most);
            near.truncate(most);
        }
        near.sort_unstable();
        let chosen: Vec<_> = near.iter().map(|(_, place)| pool.free[*place].id.clone()).collect();
        let taken: BTreeSet<_> = near.into_iter().map(|(_, place)| place).collect();
        let mut places = 0..;
        pool.free.retain(|_| places.next().is_none_or(|place| !taken.contains(&place)));
        chosen
    }
}

fn distance(free: &Free, key: &JobKey, holders: &[WorkerId]) -> Distance {
    let held = holders.iter().position(|holder| holder == &free.id);
    let warmth = match &free.warm {
        Some((job, ready)) if job == key => u8::from(!ready),
        None => 2,
        Some(_) => 3,
    };
    (free.slow, held.is_none(), warmth, held.unwrap_or_default())
}
