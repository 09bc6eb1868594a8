//! What workers say.

use std::collections::BTreeSet;
use std::time::Duration;

use pleach_base::{Result, Step, WorkerId};
use pleach_proto::v1;
use pleach_proto::v1::report_request::Report as Said;
use pleach_proto::v1::watch_job_response::Update;
use pleach_sched::{Event, Failure, JobKey, JobState, Part, Report};

use tokio_util::sync::DropGuard;

use super::effects::fenced;
use super::{Actor, Orders, Session};
use crate::view;

/// Reports that are remembered per worker, to recognise repeats.
const REMEMBERED: usize = 4096;
/// Evaluations that are kept per task.
const KEPT_EVALS: usize = 1000;

/// Numbers of reports that were taken.
#[derive(Default)]
pub(super) struct Reports(BTreeSet<u64>);

impl Reports {
    fn taken(&mut self, seq: u64) {
        self.0.insert(seq);
        if self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
    }
}

impl Actor {
    /// Gives a worker a lease. `ports`: of its key-value store, and where it answers its peers.
    pub(crate) fn register(
        &mut self,
        worker: WorkerId,
        host: String,
        ports: (u16, u16),
    ) -> Result<v1::RegisterResponse> {
        let (rendezvous_port, pulse_port) = ports;
        self.try_apply(Event::Registered { worker, host, rendezvous_port, pulse_port })?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let settings = self.settings();
        Ok(v1::RegisterResponse {
            lease_ttl_ms: millis(settings.lease_ttl),
            term: self.term().0,
            grace_ms: millis(settings.grace),
        })
    }

    /// Opens a worker's session; a session before it ends. `guard` tells the reader when it is given up. Returns its
    /// number.
    pub(crate) fn open_session(&mut self, worker: &WorkerId, orders: Orders, guard: DropGuard) -> Result<u64> {
        self.try_apply(Event::Connected { worker: worker.clone() })?;
        self.sessions_opened += 1;
        let number = self.sessions_opened;
        self.sessions.insert(worker.clone(), Session { number, orders, _guard: guard });
        Ok(number)
    }

    /// Called when a session broke; one that was replaced meanwhile changes nothing.
    pub(crate) fn close_session(&mut self, worker: &WorkerId, number: u64) {
        let current = self.sessions.get(worker).is_some_and(|session| session.number == number);
        // When the actor itself gave the session up there is no entry, but the worker is cut off all the same.
        if current || !self.sessions.contains_key(worker) {
            self.sessions.remove(worker);
            self.apply(Event::Disconnected { worker: worker.clone() });
        }
    }

    pub(crate) fn heartbeat(&mut self, worker: WorkerId, beat: &v1::Heartbeat, part: Option<Part>) {
        self.batch.ack(&worker);
        let (progress, idle, draining) = (beat.progress, beat.idle, beat.draining);
        let compute_us = (beat.compute_seconds.max(0.0) * 1e6) as u64;
        self.apply(Event::Heartbeat { worker, progress, idle, draining, part, compute_us });
    }

    /// A row of the step log. Only rank 0 of the current generation writes it.
    pub(crate) fn step(&mut self, worker: &WorkerId, part: &Part, mut row: v1::StepRow) {
        let job = self.state.jobs.get(&part.job).filter(|job| job.fence() == part.fence);
        if job.and_then(|job| job.gang.as_ref()?.rank_of(worker)) != Some(0) {
            metrics::counter!("pleach_stale_messages_total").increment(1);
            tracing::debug!(%worker, job = %part.job, fence = %part.fence, step = row.step, "ignored a stale step");
            return;
        }
        metrics::counter!("pleach_steps_total").increment(1);
        metrics::counter!("pleach_tokens_total").increment(row.tokens);
        if let Some(task) = self.task(&part.job, &row.task) {
            task.step = row.step;
            task.total_steps = row.total_steps;
            task.epoch = row.epoch;
            task.loss = row.loss;
            task.learning_rate = row.learning_rate;
            if row.step_seconds > 0.0 {
                task.tokens_per_second = row.tokens as f64 / row.step_seconds;
            }
            task.metrics.clone_from(&row.metrics);
            row.durable_step = task.durable_step;
        }
        let heads = self.state.jobs.get(&part.job).map(|job| &job.heads);
        row.recorded_step =
            heads.and_then(|heads| heads.get(&row.task.as_str().into())).map_or(0, |head| head.step().0);
        self.append(&part.job, Update::Step(row));
    }

    /// A line of a worker's log. Lines of older generations are history too.
    pub(crate) fn log(&mut self, part: &Part, line: v1::LogLine) {
        self.append(&part.job, Update::Log(line));
    }

    /// Takes a report. The same one may come twice.
    ///
    /// # Errors
    /// `FENCED` when the worker or its generation is not current.
    pub(crate) fn report(&mut self, worker: &WorkerId, seq: u64, part: &Part, mut said: Said) -> Result<()> {
        let repeated = seq > 0 && self.reports.get(worker).is_some_and(|reports| reports.0.contains(&seq));
        if repeated {
            return Ok(());
        }
        if !self.entries.contains_key(&part.job) {
            return Err(fenced(&format!("{} is not known", part.job)));
        }
        let ended = self.state.jobs.get(&part.job).is_some_and(|job| job.state.is_terminal());
        if let Said::Commits(told) = &mut said {
            told.records.retain(|record| !self.is_recorded(&part.job, record));
        }
        let event = Event::Reported { worker: worker.clone(), part: part.clone(), report: report(&said) };
        self.told = match &said {
            Said::Commits(told) => told.records.clone(),
            _ => Vec::new(),
        };
        let taken = self.try_apply(event);
        self.told.clear();
        taken?;
        if !ended {
            self.record(worker, &part.job, said);
        }
        if seq > 0 && self.state.worker(worker).is_some() {
            self.reports.entry(worker.clone()).or_default().taken(seq);
        }
        Ok(())
    }

    /// Whether a record was taken before: a report may come again, and to a leader that has not heard the first one.
    fn is_recorded(&self, key: &JobKey, record: &v1::CommitRecord) -> bool {
        let commit = view::recorded(record);
        let head = self.state.jobs.get(key).and_then(|job| job.heads.get(&commit.task));
        let Some(oldest) = head.and_then(|head| head.recent.front()) else { return false };
        let older = commit.step < oldest.step && commit.fence == oldest.fence;
        older || head.is_some_and(|head| head.recent.contains(&commit))
    }

    /// Writes down what a report tells about a task.
    fn record(&mut self, worker: &WorkerId, key: &JobKey, said: Said) {
        self.batch.durable();
        match said {
            Said::Durable(durable) => {
                if let Some(task) = self.task(key, &durable.task) {
                    task.durable_step = task.durable_step.max(durable.step);
                    task.durable_folder.clone_from(&durable.folder);
                }
                let message = format!("step {} of {} is stored in {}", durable.step, durable.task, durable.folder);
                self.append_event(key, "Checkpoint", message, &worker.name);
            }
            Said::Eval(eval) => {
                if let Some(task) = self.task(key, &eval.task) {
                    // A generation that went back repeats evaluations.
                    task.evals.retain(|before| before.step < eval.step);
                    task.evals.push(eval.clone());
                    let excess = task.evals.len().saturating_sub(KEPT_EVALS);
                    task.evals.drain(..excess);
                }
                self.append(key, Update::Eval(eval));
            }
            Said::Event(event) => self.append(key, Update::Event(event)),
            Said::Task(told) => {
                if let Some(task) = self.task(key, &told.name) {
                    merge(task, told);
                }
            }
            Said::Finished(_) => {
                let succeeded = self.state.jobs.get(key).is_some_and(|job| job.state == JobState::Succeeded);
                if let Some(entry) = self.entries.get_mut(key).filter(|_| succeeded) {
                    entry.tasks.iter_mut().for_each(|task| task.done = true);
                    self.batch.progress(key);
                }
            }
            Said::Ready(_)
            | Said::Drained(_)
            | Said::Failed(_)
            | Said::Prepared(_)
            | Said::Commits(_)
            | Said::Stalled(_) => {}
        }
    }

    fn task(&mut self, key: &JobKey, name: &str) -> Option<&mut v1::TaskStatus> {
        self.batch.progress(key);
        self.entries.get_mut(key)?.tasks.iter_mut().find(|task| task.name == name)
    }
}

/// Takes over what a worker tells about a task, where it tells anything.
fn merge(task: &mut v1::TaskStatus, told: v1::TaskStatus) {
    for (known, told) in [(&mut task.method, told.method), (&mut task.passes, told.passes)] {
        if !told.is_empty() {
            *known = told;
        }
    }
    for (known, told) in [
        (&mut task.total_steps, told.total_steps),
        (&mut task.trainable_params, told.trainable_params),
        (&mut task.all_params, told.all_params),
    ] {
        if told > 0 {
            *known = told;
        }
    }
    task.step = told.step;
    task.bad_rows = told.bad_rows;
    task.done = told.done;
    task.failure = told.failure;
}

fn report(said: &Said) -> Report {
    match said {
        Said::Ready(_) => Report::Ready,
        Said::Durable(durable) => Report::Durable { step: Step(durable.step) },
        Said::Finished(_) => Report::Finished,
        Said::Drained(_) => Report::Drained,
        Said::Failed(failed) => {
            let failure = failed.failure.clone().unwrap_or_default();
            let failure = Failure { code: failure.code, message: failure.message, hint: failure.hint };
            let (permanent, suspects) = (failed.permanent, failed.suspects.clone());
            match failed.preparing {
                true => Report::Unprepared { failure, permanent, suspects },
                false => Report::Failed { failure, permanent, suspects },
            }
        }
        Said::Prepared(_) => Report::Prepared,
        // Nothing new: only the fence counts.
        Said::Commits(told) if told.records.is_empty() => Report::Other,
        Said::Commits(told) => Report::Committed { commits: told.records.iter().map(view::recorded).collect() },
        Said::Stalled(told) => Report::Stalled { suspects: told.suspects.clone() },
        Said::Eval(_) | Said::Event(_) | Said::Task(_) => Report::Other,
    }
}
