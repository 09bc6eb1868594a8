//! What a waiting job waits for, by name.

use std::time::Duration;

use pleach_base::WorkerId;

use crate::job::JobKey;
use crate::state::State;
use crate::worker::Worker;

/// Workers that a reason names.
const NAMED: usize = 4;
/// Times are told in these steps, in seconds: a reason that changed all the time would be stored all the time.
const STEPS: [u64; 12] = [0, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 3600];

impl State {
    /// `: w3 is not prepared: loads since 4 s; w4 works for default/other`; nothing when there is nobody to speak of.
    pub(super) fn why_waiting(&self, now: Duration, key: &JobKey, chosen: &[WorkerId], least: usize) -> String {
        let lacks = |worker: &&Worker| !worker.is_ready_for(key) || !chosen.contains(&worker.id);
        let mut lacking = self.workers.values().filter(lacks);
        let mut whys: Vec<_> = lacking.by_ref().take(NAMED).map(|worker| why_not(now, key, worker)).collect();
        let more = lacking.count();
        if more > 0 {
            whys.push(format!("{more} more"));
        }
        let missing = least.saturating_sub(self.workers.len());
        if missing > 0 && !self.workers.is_empty() {
            whys.push(format!("{missing} more would have to register"));
        }
        if whys.is_empty() { String::new() } else { format!(": {}", whys.join("; ")) }
    }
}

fn why_not(now: Duration, key: &JobKey, worker: &Worker) -> String {
    let name = &worker.id.name;
    let elapsed = |since: Duration| whole(now.saturating_sub(since));
    if let Some(job) = &worker.job {
        return format!("{name} works for {job}");
    }
    if worker.draining {
        return format!("{name} leaves");
    }
    if !worker.connected {
        return format!("the session of {name} is broken");
    }
    if worker.suspected {
        return format!("{name} was left out of a gang and has not been heard of since");
    }
    if now < worker.record.barred_until {
        return format!(
            "{name} was left out of a gang and waits {} s",
            worker.record.barred_until.saturating_sub(worker.record.dropped_at).as_secs_f64()
        );
    }
    match &worker.warm {
        Some(warm) if &warm.job == key && warm.ready_at.is_none() => {
            format!("{name} is not prepared: loads since {} s", elapsed(warm.since))
        }
        Some(warm) if &warm.job != key => format!("{name} is kept for {}", warm.job),
        Some(_) => format!("{name} is ready for another turn"),
        None => format!("{name} is kept for a job before this one"),
    }
}

fn whole(elapsed: Duration) -> u64 {
    STEPS.iter().copied().rev().find(|step| *step <= elapsed.as_secs()).unwrap_or_default()
}
