//! Carrying out what the scheduler asks for.

use pleach_base::{Error, Fence, Result, WorkerId, code};
use pleach_proto::v1;
use pleach_proto::v1::session_response::Message;
use pleach_sched::{Assignment, Effect, Event, JobKey, Member, StopMode};

use super::Actor;
use crate::view;

impl Actor {
    /// Lets the scheduler take in an event and does what follows.
    ///
    /// # Errors
    /// `FENCED` when the event came from a worker or generation that is not current.
    pub(super) fn try_apply(&mut self, event: Event) -> Result<()> {
        let now = self.now();
        let (effects, violations) = if event.is_of_worker() {
            let (effects, soon) = self.state.hear(now, event);
            self.unsettled |= soon;
            let violations = self.auditor.check_effects(&self.state, &effects);
            (effects, violations)
        } else {
            let effects = self.state.apply(now, event);
            self.unsettled = false;
            let violations = self.auditor.check(&self.state, &effects);
            (effects, violations)
        };
        for violation in violations {
            metrics::counter!("pleach_invariant_violations_total", "rule" => violation.rule).increment(1);
            tracing::error!(rule = violation.rule, "{violation}");
        }
        let mut refused = None;
        for effect in effects {
            if let Effect::Refused { reason } = effect {
                refused = Some(reason);
            } else {
                self.carry_out(effect);
            }
        }
        match refused {
            Some(reason) => Err(fenced(&reason)),
            None => Ok(()),
        }
    }

    /// As [`Actor::try_apply`], for events whose refusal needs no answer.
    pub(super) fn apply(&mut self, event: Event) {
        if let Err(error) = self.try_apply(event) {
            metrics::counter!("pleach_stale_messages_total").increment(1);
            tracing::debug!(reason = error.message(), "ignored");
        }
    }

    /// Looks at all workers and jobs once for what was heard in this batch.
    pub(super) fn settle(&mut self) {
        if self.unsettled {
            self.apply(Event::Tick);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Changed { job } => self.job_changed(&job),
            Effect::Forgotten { job } => {
                self.entries.remove(&job);
                self.batch.forget(&job);
            }
            Effect::Assign { worker, assignment } => self.assign(&worker, &assignment),
            Effect::Prepare { worker, job, fence, members } => self.prepare(&worker, &job, fence, &members),
            Effect::Committed { job, commits } => {
                let told = std::mem::take(&mut self.told);
                let counts = |record: &v1::CommitRecord| commits.contains(&view::recorded(record));
                self.committed(&job, told.into_iter().filter(counts).collect());
            }
            Effect::Stop { worker, part, mode, reason } => {
                self.batch.order(&worker, Message::Stop(stop(part, mode, reason)));
            }
            Effect::Released { worker } => {
                self.reports.remove(&worker);
                self.batch.close(worker);
            }
            Effect::Note { job, kind, message, worker } => self.note(job, kind, message, worker),
            Effect::Refused { .. } => {}
        }
    }

    fn note(&mut self, job: Option<JobKey>, kind: &'static str, message: String, worker: Option<WorkerId>) {
        metrics::counter!("pleach_events_total", "kind" => kind).increment(1);
        match job {
            Some(job) => {
                tracing::info!(%job, kind, "{message}");
                self.append_event(&job, kind, message, worker.map(|id| id.name).as_deref().unwrap_or_default());
            }
            None => tracing::info!(kind, "{message}"),
        }
    }

    fn assign(&mut self, worker: &WorkerId, assignment: &Assignment) {
        let Some(entry) = self.entries.get(&assignment.job) else { return };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let members = (0u32..).zip(&assignment.members).map(|(rank, member)| view::member(rank, member)).collect();
        let message = v1::Assignment {
            tenant: assignment.job.tenant.to_string(),
            job: assignment.job.job.to_string(),
            spec_json: entry.record.spec.clone(),
            term: assignment.fence.term.0,
            generation: assignment.fence.generation.0,
            rank: number(assignment.rank),
            world: number(assignment.members.len()),
            rendezvous_host: assignment.rendezvous_host.clone(),
            rendezvous_port: u32::from(assignment.rendezvous_port),
            members,
            heads: assignment.heads.iter().map(|(task, head)| view::head(task, head)).collect(),
        };
        self.batch.order(worker, Message::Assignment(message));
    }

    fn prepare(&mut self, worker: &WorkerId, job: &JobKey, fence: Fence, members: &[Member]) {
        let Some(entry) = self.entries.get(job) else { return };
        let message = v1::Prepare {
            tenant: job.tenant.to_string(),
            job: job.job.to_string(),
            spec_json: entry.record.spec.clone(),
            term: fence.term.0,
            generation: fence.generation.0,
            members: (0u32..).zip(members).map(|(rank, member)| view::member(rank, member)).collect(),
        };
        self.batch.order(worker, Message::Prepare(message));
    }
}

fn stop(part: Option<(JobKey, Fence)>, mode: StopMode, reason: String) -> v1::Stop {
    let mode = match mode {
        StopMode::Drain => v1::StopMode::Drain,
        StopMode::Yield => v1::StopMode::Yield,
        StopMode::Abort => v1::StopMode::Abort,
    };
    let mut stop = v1::Stop { mode: mode.into(), reason, ..v1::Stop::default() };
    if let Some((job, fence)) = part {
        stop.tenant = job.tenant.to_string();
        stop.job = job.job.to_string();
        stop.term = fence.term.0;
        stop.generation = fence.generation.0;
    }
    stop
}

pub(super) fn fenced(reason: &str) -> Error {
    code::FENCED.error(reason).hint("register again, and wait for a new assignment")
}
