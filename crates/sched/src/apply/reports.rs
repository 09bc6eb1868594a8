//! What workers report about the generation that they work in.

use pleach_base::WorkerId;

use crate::effect::{Effect, StopMode};
use crate::event::{Part, Report};
use crate::gang::{EndingWhy, MemberState};
use crate::job::{Failure, JobKey, JobState};
use crate::state::{State, Turn};

/// What a report's fence is worth.
enum Standing {
    /// It is the current gang's, and the worker has a part in it.
    Current,
    /// It is not in a gang, but was asked to get ready for one.
    Preparing,
    /// The job ended with this generation: the report changes nothing and does no harm.
    Late,
    /// Something newer took over.
    Stale(String),
}

impl State {
    fn standing(&self, id: &WorkerId, part: &Part) -> Standing {
        let Some(job) = self.jobs.get(&part.job) else { return Standing::Stale(format!("{} is not known", part.job)) };
        if !job.state.is_terminal() && self.prepares(id, &part.job, part.fence) {
            return Standing::Preparing;
        }
        if part.fence != job.fence() {
            return Standing::Stale(format!("{} is at {}, the report is of {}", part.job, job.fence(), part.fence));
        }
        if job.state.is_terminal() {
            return Standing::Late;
        }
        if self.worker(id).is_none() {
            return Standing::Stale(format!("{id} holds no lease"));
        }
        match &job.gang {
            Some(gang) if gang.rank_of(id).is_some() => Standing::Current,
            Some(_) => Standing::Stale(format!("{id} has no part in {} {}", part.job, part.fence)),
            None => Standing::Stale(format!("{} of {} has ended", part.fence, part.job)),
        }
    }

    pub(super) fn reported(&mut self, turn: &mut Turn, id: &WorkerId, part: &Part, report: Report) {
        match self.standing(id, part) {
            Standing::Stale(reason) => return turn.push(Effect::Refused { reason }),
            Standing::Late => return,
            Standing::Preparing => return self.prepare_reported(turn, &part.job, id, report),
            Standing::Current => {}
        }
        let stalls = matches!(report, Report::Stalled { .. });
        if let Some(worker) = self.worker_mut(id) {
            worker.heard_at = turn.now;
            if !stalls {
                worker.progress_at = turn.now;
            }
        }
        self.reattached(turn, id, part);
        let key = &part.job;
        match report {
            Report::Ready => self.ready(turn, key, id),
            Report::Durable { step } => {
                if let Some(job) = self.jobs.get_mut(key) {
                    job.durable = job.durable.max(step);
                    job.failures_in_a_row = 0;
                    turn.changed(key);
                }
            }
            Report::Finished => self.finished(turn, key, id),
            Report::Drained => self.drained(turn, key, id),
            Report::Failed { failure, permanent, suspects } => {
                self.failed(turn, key, id, failure, permanent, &suspects);
            }
            Report::Committed { commits } => self.committed(turn, part, id, commits),
            Report::Stalled { suspects } => self.stalled(turn, key, id, &suspects),
            Report::Prepared | Report::Unprepared { .. } | Report::Other => {}
        }
    }

    fn prepare_reported(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId, report: Report) {
        if let Some(worker) = self.worker_mut(id) {
            worker.heard_at = turn.now;
        }
        match report {
            Report::Prepared => self.prepared(turn, key, id),
            Report::Unprepared { failure, permanent, suspects } => {
                self.preparation_failed(turn, key, id, failure, permanent, &suspects);
            }
            // Words of a generation that the worker was in before; they change nothing.
            _ => {}
        }
    }

    fn stalled(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId, suspects: &[u32]) {
        let gang = self.jobs.get(key).and_then(|job| job.gang.as_ref());
        let works = gang.and_then(|gang| gang.members.get(gang.rank_of(id)?));
        if works.is_some_and(|member| member.state != MemberState::Gone) {
            self.doubt(turn, key, id, suspects, None);
        }
    }

    fn ready(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let generation = job.generation;
        let Some(gang) = &mut job.gang else { return };
        let Some(rank) = gang.rank_of(id) else { return };
        if gang.members[rank].state != MemberState::Joining {
            return;
        }
        gang.members[rank].state = MemberState::Ready;
        turn.changed(key);
        gang.settled |= gang.is_ready();
        if gang.is_ready() && gang.ending.is_none() {
            let reason = format!("generation {generation} trains on {}", count(gang.world(), "worker"));
            turn.note(Some(key), "Running", None, reason.clone());
            self.set_state(turn, key, JobState::Running, reason);
        }
    }

    fn finished(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) {
        let rank = self.jobs.get(key).and_then(|job| job.gang.as_ref()).and_then(|gang| gang.rank_of(id));
        if rank != Some(0) {
            self.member_gone(turn, key, id);
            return self.reform_if_gone(turn, key);
        }
        // The other ranks have nothing left to do either: they are released without an abort.
        if let Some(gang) = self.jobs.get_mut(key).and_then(|job| job.gang.as_mut()) {
            gang.members.iter_mut().for_each(|member| member.state = MemberState::Gone);
        }
        self.finish(turn, key, JobState::Succeeded, None);
    }

    fn drained(&mut self, turn: &mut Turn, key: &JobKey, id: &WorkerId) {
        if self.member_gone(turn, key, id).is_none() {
            // It stopped by itself (its process is ending): the others cannot go on without it.
            self.drain(turn, key, EndingWhy::Reform, StopMode::Yield, format!("{id} has left"));
        }
        self.reform_if_gone(turn, key);
    }

    /// The rank cannot go on. What follows is decided when the others have spoken too.
    fn failed(
        &mut self,
        turn: &mut Turn,
        key: &JobKey,
        id: &WorkerId,
        failure: Failure,
        permanent: bool,
        suspects: &[u32],
    ) {
        let why = self.member_gone(turn, key, id);
        if why == Some(EndingWhy::Cancel) {
            return;
        }
        if permanent {
            return self.finish(turn, key, JobState::Failed, Some(failure));
        }
        let word = format!("{id} failed: {} [{}]", failure.message, failure.code);
        self.doubt(turn, key, id, suspects, Some(word));
    }
}

/// `1 worker`, `2 workers`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
