//! One task of a job on one rank: what it is made of, and its state outside the engine.

use pleach_base::{Error, Result, TaskName};
use pleach_methods::TaskPlan;
use pleach_store::Store;
use serde_json::{Map, Value, json};

use super::JobContext;
use super::checkpoint::{self, Facts};
use super::data::{SourceDigest, TaskData};
use super::memory::Memory;
use super::model::Model;
use super::uploads::Checkpoints;
use crate::engine::{Engine, Task, TaskState};
use crate::eval::{EvalSet, Metric};
use crate::observer::{Level, TaskStatus};

/// A task that is being trained.
pub(super) struct JobTask {
    pub(super) name: TaskName,
    pub(super) method: String,
    pub(super) data: TaskData,
    pub(super) eval: Option<(EvalSet, Vec<Metric>)>,
    /// Everything that was read for it.
    pub(super) sources: Vec<SourceDigest>,
    /// Between generations; during one the engine has it.
    pub(super) task: Option<Task>,
    /// Before the first step.
    pub(super) untrained: TaskState,
    /// The last ones, kept between generations.
    pub(super) memory: Memory,
    /// What the manifest says of the last step: `train/loss`, `eval/NAME`.
    pub(super) metrics: Map<String, Value>,
    /// The newest step that was handed to the store, or came from it.
    pub(super) saved_step: Option<u64>,
    /// Tasks of the job that are experts of this one, which begins when they are done; their numbers.
    pub(super) experts: Vec<usize>,
    /// Whether it has the experts' values, in this generation.
    pub(super) has_experts: bool,
    /// With whom it shares its passes, or why with nobody; see [`TaskStatus::passes`].
    pub(super) passes: String,
    /// Why it makes no more steps in this generation, which is the same on all ranks.
    pub(super) failed: Option<Error>,
    trainable_line: String,
    trainable_params: u64,
    all_params: u64,
}

/// What a generation runs on.
pub(super) struct Ground<'a> {
    pub(super) cx: &'a JobContext<'a>,
    pub(super) model: &'a Model,
    /// On rank 0.
    pub(super) store: Option<Store>,
}

impl JobTask {
    pub(super) fn new(
        name: TaskName,
        plan: &TaskPlan,
        data: TaskData,
        eval: Option<(EvalSet, Vec<Metric>)>,
        sources: Vec<SourceDigest>,
        task: Task,
    ) -> Self {
        Self {
            name,
            method: plan.method.to_owned(),
            data,
            eval,
            sources,
            untrained: task.capture(None),
            task: Some(task),
            memory: Memory::default(),
            metrics: Map::new(),
            saved_step: None,
            experts: Vec::new(),
            has_experts: false,
            passes: String::new(),
            failed: None,
            trainable_line: plan.trainable_line(),
            trainable_params: plan.trainable,
            all_params: plan.all,
        }
    }

    /// Says what the generation begins with.
    pub(super) fn introduce(&self, cx: &JobContext<'_>, step: u64) {
        let (name, total) = (&self.name, self.data.plan().total_steps());
        cx.observer.log(Level::Info, &format!("task {name}: {}", self.trainable_line));
        if step > 0 {
            cx.observer.log(Level::Info, &format!("task {name}: goes on after step {step} of {total}"));
        }
        if self.data.bad_rows() > 0 {
            let line = format!("task {name}: {} malformed rows are skipped", self.data.bad_rows());
            cx.observer.log(Level::Warn, &line);
        }
        cx.observer.task(&self.status(step));
    }

    /// Whether all steps are done.
    pub(super) fn is_done(&self, step: u64) -> bool {
        step >= self.data.plan().total_steps()
    }

    pub(super) fn status(&self, step: u64) -> TaskStatus {
        TaskStatus {
            task: self.name.clone(),
            method: self.method.clone(),
            step,
            total_steps: self.data.plan().total_steps(),
            trainable_params: self.trainable_params,
            all_params: self.all_params,
            bad_rows: self.data.bad_rows(),
            done: self.is_done(step),
            passes: self.passes.clone(),
            failure: self.failed.as_ref().map(|error| error.message().to_owned()).unwrap_or_default(),
        }
    }

    /// Notes a metric for the manifest; what is not finite is left out.
    pub(super) fn note(&mut self, name: String, value: f64) {
        if value.is_finite() {
            self.metrics.insert(name, json!(value));
        } else {
            self.metrics.shift_remove(&name);
        }
    }

    /// Hands the task's state to the store, unless this step is there already. Other ranks than 0 only note it.
    pub(super) fn save(
        &mut self,
        engine: &Engine<'_>,
        ground: &Ground<'_>,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<()> {
        let step = engine.step(&self.name)?;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        if let Some(checkpoints) = checkpoints {
            let job = &ground.cx.job.spec;
            let facts = Facts {
                step,
                total_steps: self.data.plan().total_steps(),
                epoch: self.data.epoch(step),
                seed: job.train.seed,
                method: &self.method,
                base_path: &job.backbone.path,
                base_fingerprint: &ground.model.fingerprint,
                dataset_digest: self.data.digest(),
                metrics: &self.metrics,
            };
            let ledger = self.memory.ledger.iter().cloned().collect();
            checkpoints.submit(checkpoint::snapshot(engine.save(&self.name)?, &facts, ledger))?;
        }
        self.saved_step = Some(step);
        Ok(())
    }
}
