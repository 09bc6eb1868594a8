//! How generations and jobs end.

use pleach_base::{WorkerId, code};

use crate::effect::StopMode;
use crate::gang::{Ending, EndingWhy, Gang, MemberState};
use crate::job::{Failure, JobKey, JobState};
use crate::state::{State, Turn};

impl State {
    pub(super) fn cancel_asked(&mut self, turn: &mut Turn, key: &JobKey, reason: &str) {
        let Some(job) = self.jobs.get_mut(key).filter(|job| !job.state.is_terminal() && job.cancel.is_none()) else {
            return;
        };
        let reason = if reason.is_empty() { "cancelled by request" } else { reason };
        job.cancel = Some(reason.to_owned());
        turn.changed(key);
        if job.gang.is_none() {
            turn.note(Some(key), "Cancelled", None, format!("cancelled while it waited: {reason}"));
            return self.set_state(turn, key, JobState::Cancelled, reason);
        }
        self.set_state(turn, key, JobState::Stopping, format!("{reason}; finishes the step and a checkpoint"));
        self.drain(turn, key, EndingWhy::Cancel, StopMode::Drain, reason.to_owned());
    }

    /// Asks a gang to stop at a step boundary. A gang that ends already is not asked twice; a wish to cancel overrides a
    /// wish to form again.
    pub(crate) fn drain(&mut self, turn: &mut Turn, key: &JobKey, why: EndingWhy, mode: StopMode, reason: String) {
        let patience = match mode {
            StopMode::Yield => self.settings.yield_timeout,
            StopMode::Drain | StopMode::Abort => self.settings.drain_timeout,
        };
        let deadline = turn.now + patience;
        let Some(job) = self.jobs.get_mut(key) else { return };
        let fence = job.fence();
        let Some(gang) = &mut job.gang else { return };
        if let Some(ending) = &mut gang.ending {
            if why == EndingWhy::Cancel {
                ending.why = why;
                ending.reason = reason;
                turn.changed(key);
            }
            return;
        }
        turn.changed(key);
        let what = if mode == StopMode::Yield { "pauses" } else { "is asked to drain" };
        turn.note(Some(key), "Draining", None, format!("generation {} {what}: {reason}", fence.generation));
        for member in gang.members.iter().filter(|member| member.state != MemberState::Gone) {
            turn.stop(&member.worker, Some((key, fence)), mode, reason.clone());
        }
        gang.ending = Some(Ending { why, mode, reason, deadline });
    }

    /// A rank works no more although it was not asked to end: its lease is gone.
    pub(super) fn member_lost(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId, why: &str) {
        if self.member_gone(turn, key, id) != Some(EndingWhy::Cancel) {
            self.end_generation(turn, key, &format!("{id} was lost: {why}"), true);
        }
    }

    /// Marks a rank as gone; says why its gang ends, if it does. A gang that has drained dissolves.
    pub(super) fn member_gone(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) -> Option<EndingWhy> {
        let gang = self.jobs.get_mut(key)?.gang.as_mut()?;
        let rank = gang.rank_of(id)?;
        gang.members[rank].state = MemberState::Gone;
        turn.changed(key);
        let why = gang.ending.as_ref().map(|ending| ending.why);
        if gang.is_gone() && why == Some(EndingWhy::Cancel) {
            self.finish(turn, key, JobState::Cancelled, None);
        }
        why
    }

    /// Called when a rank drained: the last one dissolves a gang that is to form again.
    pub(super) fn reform_if_gone(&mut self, turn: &mut Turn, key: &JobKey) {
        let Some(gang) = self.jobs.get(key).and_then(|job| job.gang.as_ref()) else { return };
        let Some(ending) = gang.ending.as_ref().filter(|_| gang.is_gone() && gang.trouble.is_none()) else { return };
        if ending.why == EndingWhy::Reform {
            let (mode, reason) = (ending.mode, format!("forms again: {}", ending.reason));
            self.dissolve(turn, key, "");
            if let Some(job) = self.jobs.get_mut(key) {
                job.hurry = mode == StopMode::Yield;
                // A drained gang has its newest step in the store.
                job.keep_until = if mode == StopMode::Yield { job.keep_until } else { turn.now };
            }
            self.set_state(turn, key, JobState::Queued, reason);
        }
    }

    pub(super) fn abort_overdue(&mut self, turn: &mut Turn) {
        let overdue: Vec<_> = self
            .jobs
            .iter()
            .filter_map(|(key, job)| Some((key, job.gang.as_ref()?.ending.as_ref()?)))
            .filter(|(_, ending)| turn.now >= ending.deadline)
            .map(|(key, ending)| (key.clone(), ending.why))
            .collect();
        for (key, why) in overdue {
            match why {
                EndingWhy::Cancel => self.finish(turn, &key, JobState::Cancelled, None),
                EndingWhy::Reform => self.fail_generation(turn, &key, "it did not drain in time"),
            }
        }
    }

    /// Ends a generation that failed with nobody to blame; the job forms again after a wait while its budget lasts.
    pub(super) fn fail_generation(&mut self, turn: &mut Turn, key: &JobKey, why: &str) {
        self.end_generation(turn, key, why, false);
    }

    /// Ends a generation that failed. When the `culprit` is known and out, the survivors go on at once. Failures count
    /// against the budget until a step is recorded: a job that gets on may lose workers without end.
    pub(super) fn end_generation(&mut self, turn: &mut Turn, key: &JobKey, why: &str, culprit: bool) {
        let advanced = self.jobs.get(key).and_then(|job| job.gang.as_ref()).is_some_and(|gang| gang.advanced);
        self.dissolve(turn, key, why);
        let backoff = |failures| self.settings.backoff(failures);
        let failures = self.jobs.get(key).map_or(0, |job| job.failures_in_a_row) + 1;
        let wait = if culprit { std::time::Duration::ZERO } else { backoff(failures) };
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.restarts += 1;
        job.failures_in_a_row = if culprit && advanced { 0 } else { failures };
        job.hold_until = turn.now + wait;
        job.hurry = culprit;
        let (generation, budget) = (job.generation, job.needs.restarts);
        turn.note(Some(key), "GenerationEnded", None, format!("generation {generation} ended: {why}"));
        turn.changed(key);
        if job.failures_in_a_row > budget {
            let message = format!("generation {generation} ended ({why}) after {budget} restarts, which is the limit");
            let hint = "mend the cause, raise `spec.workers.restarts`, and submit again".to_owned();
            let failure = Failure { code: code::RESTARTS_SPENT.id.into(), message, hint };
            return self.finish(turn, key, JobState::Failed, Some(failure));
        }
        self.set_state(turn, key, JobState::Queued, format!("generation {generation} ended: {why}; forms again"));
    }

    /// Ends a job.
    pub(super) fn finish(&mut self, turn: &mut Turn, key: &JobKey, state: JobState, failure: Option<Failure>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let (kind, reason) = match state {
            JobState::Succeeded => ("Succeeded", "all tasks are done".to_owned()),
            JobState::Cancelled => {
                let drained = job.gang.as_ref().is_none_or(Gang::is_gone);
                let how = if drained { "drained" } else { "did not drain in time and was aborted" };
                ("Cancelled", format!("{}; {how}", job.cancel.as_deref().unwrap_or("cancelled")))
            }
            _ => ("Failed", failure.as_ref().map_or_else(String::new, |failure| failure.message.clone())),
        };
        job.failure = failure;
        turn.note(Some(key), kind, None, reason.clone());
        self.dissolve(turn, key, &reason);
        self.set_state(turn, key, state, reason);
    }

    /// Takes a gang apart: its workers are free, and those that still work are told to stop at once. Ranks beside the
    /// first of a job that succeeded are done too, or nearly, and need no telling.
    fn dissolve(&mut self, turn: &mut Turn, key: &JobKey, why: &str) {
        let grace = self.settings.grace;
        let Some(job) = self.jobs.get_mut(key) else { return };
        let fence = job.fence();
        job.enough_since = None;
        let Some(gang) = job.gang.take() else { return };
        job.remember(&gang);
        job.keep_until = turn.now + grace;
        turn.changed(key);
        for member in gang.members {
            let Some(worker) = self.worker_mut(&member.worker).filter(|worker| worker.job.as_ref() == Some(key)) else {
                continue;
            };
            worker.job = None;
            if member.state != MemberState::Gone {
                turn.stop(&member.worker, Some((key, fence)), StopMode::Abort, why);
            }
        }
    }
}
