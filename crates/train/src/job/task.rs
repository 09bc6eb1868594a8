//! One task of a job on one rank: made ready, resumed, and its state outside the engine.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, TaskName};
use pleach_methods::{Adapter, Export, TaskPlan};
use pleach_spec::job::{DataSpec, TaskSpec};
use pleach_store::Store;
use serde_json::{Map, Value, json};

use super::checkpoint::{self, Checkpoints, Facts};
use super::data::{Opener, TaskData};
use super::model::{Encoders, Model};
use super::{JobContext, init, resume};
use crate::engine::{Engine, Objective, TaskSetup};
use crate::eval::{self, EvalSet, Metric};
use crate::observer::{Level, TaskStatus};

/// A task that is being trained.
pub(super) struct JobTask {
    pub(super) name: TaskName,
    pub(super) method: String,
    pub(super) data: TaskData,
    pub(super) eval: Option<(EvalSet, Vec<Metric>)>,
    /// On rank 0.
    pub(super) checkpoints: Option<Checkpoints>,
    /// What the manifest says of the last step: `train/loss`, `eval/NAME`.
    pub(super) metrics: Map<String, Value>,
    /// The newest step that was handed to the store, or came from it.
    pub(super) saved_step: Option<u64>,
    trainable_params: u64,
    all_params: u64,
}

/// What making a task ready needs.
pub(super) struct Ground<'a> {
    pub(super) cx: &'a JobContext<'a>,
    pub(super) model: &'a Model,
    /// On rank 0.
    pub(super) store: Option<&'a Store>,
}

impl Ground<'_> {
    /// Builds the adapter, opens the data, takes the task over in the store and resumes it. A collective call.
    pub(super) fn prepare(
        &self,
        engine: &mut Engine<'_>,
        encoders: &mut Encoders,
        spec: &TaskSpec,
        plan: &TaskPlan,
    ) -> Result<JobTask> {
        let job = &self.cx.job.spec;
        let name = TaskName::from(spec.name.as_str());
        let data_spec = data_of(self.cx, spec)?;
        let front = plan.config.virtual_tokens();
        let opener = Opener { cx: self.cx, model: self.model.config(), folder: &self.model.folder, front };
        let data = opener.task(encoders, data_spec, &job.train, &name)?;
        let eval = match &job.eval {
            Some(eval) => {
                let metrics = eval::wanted(&eval.metrics, data_spec.task)?;
                Some((opener.eval(encoders, data_spec, eval)?, metrics))
            }
            None => None,
        };
        engine.add_task(self.setup(&name, spec, plan, data_spec, &data)?)?;
        let mut task = JobTask {
            name,
            method: spec.adapter.method.clone(),
            data,
            eval,
            checkpoints: None,
            metrics: Map::new(),
            saved_step: None,
            trainable_params: plan.trainable,
            all_params: plan.all,
        };
        self.resume(engine, &mut task)?;
        self.introduce(engine, &task, plan)?;
        Ok(task)
    }

    fn setup(
        &self,
        name: &TaskName,
        spec: &TaskSpec,
        plan: &TaskPlan,
        data: &DataSpec,
        rows: &TaskData,
    ) -> Result<TaskSetup> {
        let job = &self.cx.job.spec;
        let key = Key::seed(job.train.seed).named(name.as_str()).named("adapter");
        let backbone = self.model.backbone.as_ref();
        let values = match &spec.init_from {
            Some(from) => Some(init::read(from, plan, &self.model.fingerprint)?),
            None => None,
        };
        let adapter = Adapter::build(Arc::clone(&plan.config), Arc::clone(&plan.plan), backbone, key, values.as_ref())?;
        let export = Export { base: &job.backbone.path };
        Ok(TaskSetup {
            name: name.clone(),
            adapter,
            adapter_config: Value::Object(plan.config.adapter_config(self.model.config(), &plan.plan, &export)),
            objective: Objective::of(data.task, job.train.temperature),
            optimizer: spec.optimizer.clone().unwrap_or_else(|| job.train.optimizer.clone()),
            schedule: job.train.schedule.clone(),
            total_steps: rows.plan().total_steps(),
            max_grad_norm: job.train.max_grad_norm,
            non_finite: job.train.non_finite,
            determinism: job.train.determinism,
            micro_batch: job.train.micro_batch.map(|rows| rows as usize),
            checkpointing: job.train.activation_checkpointing,
            own_steps: true,
        })
    }

    /// Rank 0 fences the task first and reads then: nothing older can become durable behind the step that it finds.
    fn resume(&self, engine: &mut Engine<'_>, task: &mut JobTask) -> Result<()> {
        let cx = self.cx;
        let mut found = None;
        if let Some(store) = self.store {
            let place = store.task(&cx.tenant, &cx.id, &task.name);
            let writer = cx.runtime.block_on(place.fence(cx.fence))?;
            if let Some(entry) = cx.runtime.block_on(place.newest())? {
                found = Some(cx.runtime.block_on(place.read(&entry))?);
                let below_root = checkpoint::below_root(store, &place);
                cx.observer.durable(&checkpoint::durable_row(&task.name, &below_root, &entry));
            }
            task.checkpoints = Some(Checkpoints::start(
                &task.name,
                store,
                writer,
                &cx.job.spec.checkpoint,
                &cx.runtime,
                &cx.observer,
                &cx.stop,
            ));
        }
        let Some(resumed) = resume::share(cx.group, found)? else { return Ok(()) };
        resumed.check_base(&task.name, &self.model.fingerprint)?;
        engine.load(&task.name, &resumed.files)?;
        task.metrics = resumed.metrics();
        task.saved_step = Some(engine.step(&task.name)?);
        Ok(())
    }

    fn introduce(&self, engine: &Engine<'_>, task: &JobTask, plan: &TaskPlan) -> Result<()> {
        let (step, total) = (engine.step(&task.name)?, task.data.plan().total_steps());
        self.cx.observer.log(Level::Info, &format!("task {}: {}", task.name, plan.trainable_line()));
        if step > 0 {
            self.cx.observer.log(Level::Info, &format!("task {}: goes on after step {step} of {total}", task.name));
        }
        if task.data.bad_rows() > 0 {
            let line = format!("task {}: {} malformed rows are skipped", task.name, task.data.bad_rows());
            self.cx.observer.log(Level::Warn, &line);
        }
        self.cx.observer.task(&task.status(step));
        Ok(())
    }
}

impl JobTask {
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
    pub(super) fn save(&mut self, engine: &Engine<'_>, ground: &Ground<'_>) -> Result<()> {
        let step = engine.step(&self.name)?;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        if let Some(checkpoints) = &self.checkpoints {
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
            checkpoints.submit(checkpoint::snapshot(engine.save(&self.name)?, &facts))?;
        }
        self.saved_step = Some(step);
        Ok(())
    }
}

/// The data of a task: its own, else the job's.
pub(super) fn data_of<'a>(cx: &'a JobContext<'_>, spec: &'a TaskSpec) -> Result<&'a DataSpec> {
    spec.data.as_ref().or(cx.job.spec.data.as_ref()).ok_or_else(|| {
        pleach_base::code::BAD_VALUE
            .error(format!("spec.tasks.{}: has no data", spec.name))
            .hint("give `spec.data`, or `data` in the task")
    })
}
