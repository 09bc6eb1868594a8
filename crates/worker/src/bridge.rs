//! Turns what the engine tells into messages.

use std::sync::Arc;

use pleach_proto::v1::Ready;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_train::{CommitRow, DurableRow, EvalRow, Level, Observer, Phase, Recorded, StepRow, StepTimes, TaskStatus};

use crate::convert;
use crate::gang::Surroundings;
use crate::reporter::Part;
use crate::session;
use crate::watched::Gauge;

/// What a part tells.
pub(crate) struct Bridge {
    part: Part,
    rank: usize,
    around: Surroundings,
    gauge: Arc<Gauge>,
    recorded: Recorded,
}

impl Bridge {
    pub(crate) fn new(part: &Part, rank: usize, around: &Surroundings, gauge: &Arc<Gauge>, recorded: Recorded) -> Self {
        Self { part: part.clone(), rank, around: around.clone(), gauge: Arc::clone(gauge), recorded }
    }

    /// Rows and lines may be lost when the coordinator is away for long; training never waits for them.
    fn stream(&self, message: Message) {
        let request = session::request(&self.around.identity, Some(&self.part), message);
        let _ = self.around.rows.try_send(request);
    }

    fn report(&self, report: Report) {
        self.around.reporter.send(&self.part, report);
    }

    /// What is the same on all ranks is told once.
    fn is_speaker(&self) -> bool {
        self.rank == 0
    }
}

impl Observer for Bridge {
    fn step(&self, row: &StepRow) {
        self.progress();
        self.gauge.stepped(row.seconds);
        self.around.heart.computed(row.compute_seconds);
        if self.is_speaker() {
            self.stream(Message::Step(convert::step(row, self.part.fence, self.around.clock.as_ref())));
        }
    }

    fn times(&self, times: StepTimes) {
        let rank = u32::try_from(self.rank).unwrap_or(u32::MAX);
        self.around.heart.times.push(&self.part, rank, convert::times(&times));
    }

    fn commit(&self, row: &CommitRow) {
        let (recorded, task, step) = (self.recorded.clone(), row.task.clone(), row.step.0);
        let taken = Box::new(move || recorded.note(&task, step));
        self.around.reporter.commit(&self.part, convert::commit(row), taken);
    }

    fn phase(&self, phase: Phase) {
        if let Some(faults) = &self.around.faults {
            faults.strike(phase.name());
        }
    }

    fn eval(&self, row: &EvalRow) {
        self.progress();
        if self.is_speaker() {
            self.report(Report::Eval(convert::eval(row)));
        }
    }

    fn durable(&self, row: &DurableRow) {
        self.report(Report::Durable(convert::durable(row)));
    }

    fn task(&self, status: &TaskStatus) {
        if self.is_speaker() {
            self.report(Report::Task(convert::task(status)));
        }
    }

    fn ready(&self) {
        self.report(Report::Ready(Ready {}));
    }

    fn log(&self, level: Level, text: &str) {
        match level {
            Level::Info => tracing::info!(job = %self.part.job, "{text}"),
            Level::Warn => tracing::warn!(job = %self.part.job, "{text}"),
        }
        if self.is_speaker() || level == Level::Warn {
            let worker = &self.around.identity.id.name;
            self.stream(Message::Log(convert::log(level, text, worker, self.around.clock.as_ref())));
        }
    }

    fn progress(&self) {
        self.around.heart.progresses();
    }
}
