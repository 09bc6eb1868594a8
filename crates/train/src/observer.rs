//! What the engine tells while it works. Plain data: the worker turns it into messages, tests into lists.

use std::collections::BTreeMap;
use std::time::Duration;

use pleach_base::{Step, TaskName, human};

use crate::phase::Phase;
use crate::record::CommitRow;
use crate::times::StepTimes;

/// One optimiser step of one task, the same on every rank except for `rss_bytes` and times.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRow {
    /// The task.
    pub task: TaskName,
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole task.
    pub total_steps: u64,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// Loss of the global batch, before the update.
    pub loss: f64,
    /// Norm of the reduced gradient before clipping.
    pub grad_norm: f64,
    /// Rate of this update.
    pub learning_rate: f64,
    /// Real tokens of the global batch; padding is not counted.
    pub tokens: u64,
    /// Wall time of the step on this rank.
    pub seconds: f64,
    /// What of it this rank computed: waiting for other ranks is not counted.
    pub compute_seconds: f64,
    /// sha256 of the trainable parameters after the step, hex.
    pub digest: String,
    /// The update was skipped because something was not finite.
    pub skipped: bool,
    /// Ranks that took part.
    pub world: u32,
    /// Resident memory of this rank.
    pub rss_bytes: u64,
    /// What the method says of the step, such as how evenly a router's experts share the work.
    pub metrics: BTreeMap<String, f64>,
}

impl StepRow {
    /// `step 12/100 loss 1.2345 grad_norm 0.56 lr 1.0e-3 tok/s 1,234 mem 312 MiB`.
    #[must_use]
    pub fn line(&self) -> String {
        let rate = if self.seconds > 0.0 { (self.tokens as f64 / self.seconds).round() as u64 } else { 0 };
        format!(
            "step {}/{} loss {:.4} grad_norm {:.2} lr {:.1e} tok/s {} mem {} MiB{}",
            self.step,
            self.total_steps,
            self.loss,
            self.grad_norm,
            self.learning_rate,
            human::count(rate),
            self.rss_bytes >> 20,
            if self.skipped { " (not finite: skipped)" } else { "" },
        )
    }
}

/// One evaluation of one task, the same on every rank except for `time`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalRow {
    /// The task.
    pub task: TaskName,
    /// Steps done when it was evaluated.
    pub step: u64,
    /// `loss`, `accuracy`, `recall@1`, `mrr`, ... to value.
    pub metrics: BTreeMap<String, f64>,
    /// Rows (for retrieval: queries) evaluated.
    pub samples: u64,
    /// Wall time.
    pub time: Duration,
}

impl EvalRow {
    /// `eval at step 12: loss 1.2345 recall@1 0.5000 (80 samples in 1.2 s)`.
    #[must_use]
    pub fn line(&self) -> String {
        let metrics: Vec<_> = self.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let time = human::duration(self.time);
        format!("eval at step {}: {} ({} samples in {time})", self.step, metrics.join(" "), human::count(self.samples))
    }
}

/// A step that became durable (rank 0 only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableRow {
    /// The task.
    pub task: TaskName,
    /// The step.
    pub step: Step,
    /// Folder of the step relative to the store's root.
    pub folder: String,
    /// sha256 of its manifest, hex.
    pub manifest_sha256: String,
    /// Number of its log entry.
    pub log_seq: u64,
    /// Whether the gate passed.
    pub publishable: bool,
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskStatus {
    /// The task.
    pub task: TaskName,
    /// Its method.
    pub method: String,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole task.
    pub total_steps: u64,
    /// Numbers that are trained.
    pub trainable_params: u64,
    /// Numbers of base and adapter together.
    pub all_params: u64,
    /// Malformed rows skipped in its data.
    pub bad_rows: u64,
    /// All steps are done and, where this rank knows, durable.
    pub done: bool,
    /// Where there are several tasks: with whom it shares its passes through the model, or why with nobody.
    pub passes: String,
    /// Why it makes no more steps, while the others go on; empty as long as it does.
    pub failure: String,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For people who follow.
    Info,
    /// Something is not as it should be, and training goes on.
    Warn,
}

/// Receives rows on the training thread (durable rows: on the uploader's task). Must not block.
pub trait Observer: Send + Sync {
    /// A step was committed or skipped.
    fn step(&self, _row: &StepRow) {}
    /// Where the time of a step went. Told after everything that belongs to it.
    fn times(&self, _times: StepTimes) {}
    /// The ranks agreed on a step: it is to be recorded (rank 0 only). Also told of steps that an earlier generation made
    /// and nobody recorded.
    fn commit(&self, _row: &CommitRow) {}
    /// A phase of a step begins. [`Phase::DuringUpload`] is told on the uploader's task.
    fn phase(&self, _phase: Phase) {}
    /// An evaluation ended.
    fn eval(&self, _row: &EvalRow) {}
    /// A checkpoint is in the store.
    fn durable(&self, _row: &DurableRow) {}
    /// A task began, resumed or ended.
    fn task(&self, _status: &TaskStatus) {}
    /// This rank holds all its state and enters the first step.
    fn ready(&self) {}
    /// A line for people.
    fn log(&self, _level: Level, _text: &str) {}
    /// The training thread did something: loaded a tensor file, read rows, ran a micro-batch. Leases live by this.
    fn progress(&self) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_line_reads_as_documented() {
        let row = StepRow {
            task: "a".into(),
            step: 12,
            total_steps: 100,
            epoch: 0.5,
            loss: 1.234_54,
            grad_norm: 0.561,
            learning_rate: 1e-3,
            tokens: 617,
            seconds: 0.5,
            compute_seconds: 0.25,
            digest: String::new(),
            skipped: false,
            world: 2,
            rss_bytes: 312 << 20,
            metrics: BTreeMap::new(),
        };
        assert_eq!(row.line(), "step 12/100 loss 1.2345 grad_norm 0.56 lr 1.0e-3 tok/s 1,234 mem 312 MiB");
        assert!(StepRow { skipped: true, ..row }.line().ends_with("MiB (not finite: skipped)"));
    }
}
