//! Workers get ready before they join: the model is loaded and all members answer.

use pleach_base::{Fence, WorkerId};

use crate::effect::Effect;
use crate::gang::MemberState;
use crate::job::{Failure, JobKey, JobState};
use crate::state::{State, Turn};
use crate::worker::Warm;

impl State {
    /// Asks a free worker to get ready for a job, unless it was asked already.
    pub(crate) fn prepare(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) {
        let Some(fence) = self.jobs.get(key).map(|job| job.fence()) else { return };
        let Some(worker) = self.worker_mut(id).filter(|worker| !worker.is_warm_for(key)) else { return };
        worker.warm = Some(Warm { job: key.clone(), fence, since: turn.now, ready_at: None });
        self.send_prepare(turn, id);
    }

    /// Sends the request to get ready, again after a session broke.
    pub(super) fn send_prepare(&self, turn: &mut Turn, id: &WorkerId) {
        let Some(worker) = self.worker(id).filter(|worker| worker.job.is_none()) else { return };
        let Some(warm) = worker.warm.as_ref().filter(|warm| warm.ready_at.is_none()) else { return };
        let Some(job) = self.jobs.get(&warm.job) else { return };
        let members = job.gang.iter().flat_map(|gang| &gang.members);
        let members = members.filter(|member| member.state != MemberState::Gone).cloned().collect();
        turn.push(Effect::Prepare { worker: id.clone(), job: warm.job.clone(), fence: warm.fence, members });
    }

    /// Whether a report answers the request to get ready.
    pub(super) fn prepares(&self, id: &WorkerId, key: &JobKey, fence: Fence) -> bool {
        let worker = self.worker(id).filter(|worker| worker.job.is_none());
        let warm = worker.and_then(|worker| worker.warm.as_ref());
        warm.is_some_and(|warm| &warm.job == key && warm.fence == fence)
    }

    pub(super) fn prepared(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) {
        let now = turn.now;
        let Some(worker) = self.worker_mut(id) else { return };
        let Some(warm) = worker.warm.as_mut().filter(|warm| warm.ready_at.is_none()) else { return };
        warm.ready_at = Some(now);
        let took = now.saturating_sub(warm.since).as_secs_f64();
        turn.note(Some(key), "Prepared", Some(id), format!("{id} is ready to take part; it took {took:.1} s"));
    }

    /// A worker cannot get ready. When no gang has shown that the job can be trained, a permanent cause ends the job;
    /// otherwise something is wrong with this worker, and it waits longer each time.
    pub(super) fn preparation_failed(
        &mut self,
        turn: &mut Turn,
        key: &JobKey,
        id: &WorkerId,
        failure: Failure,
        permanent: bool,
        suspects: &[u32],
    ) {
        let Some(job) = self.jobs.get(key) else { return };
        let mut message = format!("{id} cannot get ready: {} [{}]", failure.message, failure.code);
        let names =
            job.gang.iter().flat_map(|gang| suspects.iter().filter_map(|rank| gang.members.get(*rank as usize)));
        let names: Vec<_> = names.map(|member| member.worker.to_string()).collect();
        if !names.is_empty() {
            message = format!("{message}; no answer from {}", names.join(", "));
        }
        turn.note(Some(key), "PrepareFailed", Some(id), message);
        if permanent && job.state != JobState::Running && job.heads.is_empty() {
            return self.finish(turn, key, JobState::Failed, Some(failure));
        }
        self.free_for_a_while(turn, id);
    }

    fn free_for_a_while(&mut self, turn: &Turn, id: &WorkerId) {
        let settings = self.settings.clone();
        if let Some(worker) = self.worker_mut(id) {
            worker.warm = None;
            worker.bar(turn.now, &settings);
        }
    }

    /// Frees workers that do not answer in time, and those that are ready for a job that has ended.
    pub(super) fn expire_preparations(&mut self, turn: &mut Turn) {
        let timeout = self.settings.prepare_timeout;
        let mut late = Vec::new();
        let jobs = &self.jobs;
        // Spares by the thousand are ready for one job.
        let mut last: Option<(JobKey, bool)> = None;
        for worker in self.workers.values_mut() {
            let Some(warm) = &worker.warm else { continue };
            if last.as_ref().is_none_or(|(key, _)| *key != warm.job) {
                let ended = jobs.get(&warm.job).is_none_or(|job| job.state.is_terminal());
                last = Some((warm.job.clone(), ended));
            }
            if last.as_ref().is_some_and(|(_, ended)| *ended) {
                worker.warm = None;
            } else if warm.ready_at.is_none() && worker.job.is_none() && turn.now >= warm.since + timeout {
                late.push((worker.id.clone(), warm.job.clone()));
            }
        }
        for (id, key) in late {
            let message = format!("{id} did not get ready within {} s", timeout.as_secs_f64());
            turn.note(Some(&key), "PrepareFailed", Some(&id), message);
            self.free_for_a_while(turn, &id);
        }
    }
}
