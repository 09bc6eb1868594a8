//! A job made ready on one rank: model, tokenizers, data and adapters. All of it is this rank's own work: it is done
//! before the gang is joined, and kept for the gangs that follow.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{JobId, Result, TaskName, Tenant};
use pleach_methods::files::Recorded;
use pleach_methods::{Adapter, Export, TaskPlan};
use pleach_spec::Job;
use pleach_spec::job::{DataSpec, TaskSpec};
use serde_json::Value;
use tch::Device;
use tokio::runtime::Handle;

use super::data::{Opener, TaskData};
use super::model::{Encoders, Model, Warm};
use super::task::JobTask;
use super::{experts, init};
use crate::engine::{Objective, Task, TaskSetup};
use crate::eval;
use crate::observer::Observer;
use crate::stop::StopSignal;

/// What making a job ready needs.
#[derive(Clone)]
pub struct Preparation {
    /// The owner.
    pub tenant: Tenant,
    /// The job's id.
    pub id: JobId,
    /// The resolved job.
    pub job: Job,
    /// Where the model goes.
    pub device: Device,
    /// Hears of progress.
    pub observer: Arc<dyn Observer>,
    /// How the work is asked to stop.
    pub stop: StopSignal,
    /// Fetches remote data. The calling thread must not be one of its own.
    pub runtime: Handle,
}

impl Preparation {
    /// What must be equal for what was made ready to be used again.
    fn key(&self) -> String {
        format!("{}/{} {:?} {:?}", self.tenant, self.id, self.device, self.job.spec)
    }
}

impl Warm {
    /// Loads the model, opens the data and builds the adapters of a job, unless that is what is kept.
    pub(super) fn ready(&mut self, cx: &Preparation) -> Result<(&Model, &mut Vec<JobTask>)> {
        let key = cx.key();
        if self.ready_for != key {
            self.tasks.clear();
            self.ready_for.clear();
        }
        self.load(&cx.job, cx.device, cx.observer.as_ref())?;
        let Self { model: Some(model), encoders, tasks, ready_for, .. } = self else {
            return Err(pleach_base::code::INTERNAL.error("the model is not there after it was loaded"));
        };
        if *ready_for != key {
            *tasks = make(cx, model, encoders)?;
            *ready_for = key;
        }
        Ok((model, tasks))
    }
}

fn make(cx: &Preparation, model: &Model, encoders: &mut Encoders) -> Result<Vec<JobTask>> {
    let job = &cx.job;
    experts::fetch(cx)?;
    let plan = pleach_methods::plan_job(job, model.config())?;
    let mut tasks = Vec::with_capacity(job.spec.tasks.len());
    for (index, (spec, plan)) in job.spec.tasks.iter().zip(&plan.tasks).enumerate() {
        cx.stop.check()?;
        let mut made = task(cx, model, encoders, spec, plan)?;
        made.experts = pleach_methods::expert_tasks(job, index);
        tasks.push(made);
    }
    Ok(tasks)
}

fn task(cx: &Preparation, model: &Model, encoders: &mut Encoders, spec: &TaskSpec, plan: &TaskPlan) -> Result<JobTask> {
    let job = &cx.job.spec;
    let name = TaskName::from(spec.name.as_str());
    let data_spec = data_of(&cx.job, spec)?;
    let opener = Opener::new(cx, model, plan.config.as_ref());
    let splits = plan.config.sequence().map(|sequence| sequence.splits(model.config())).transpose()?;
    let data = opener.task(encoders, data_spec, &job.train, &name, splits.as_deref())?;
    let eval = match &job.eval {
        Some(eval) => {
            let metrics = eval::wanted(&eval.metrics, data_spec.task)?;
            Some((opener.eval(encoders, data_spec, eval)?, metrics))
        }
        None => None,
    };
    let mut task = Task::new(setup(cx, model, &name, spec, plan, data_spec, &data)?)?;
    if let Some(splits) = splits {
        task.learns(data.course(&splits, eval.as_ref().map(|(set, _)| set), cx.device))?;
    }
    Ok(JobTask::new(name, plan, data, eval, opener.into_sources(), task))
}

fn setup(
    cx: &Preparation,
    model: &Model,
    name: &TaskName,
    spec: &TaskSpec,
    plan: &TaskPlan,
    data: &DataSpec,
    rows: &TaskData,
) -> Result<TaskSetup> {
    let job = &cx.job.spec;
    let key = Key::seed(job.train.seed).named(name.as_str()).named("adapter");
    let backbone = model.backbone.as_ref();
    let values = match &spec.init_from {
        Some(from) => Some(init::read(from, plan, &model.fingerprint)?),
        None => None,
    };
    for (at, folder) in &plan.plan.begins {
        Recorded::read(folder)?.check_base(&format!("spec.tasks.{name}: {at}"), &model.fingerprint)?;
    }
    let adapter = Adapter::build(Arc::clone(&plan.config), Arc::clone(&plan.plan), backbone, key, values.as_ref())?;
    plan.config.fits(rows.plan().total_steps())?;
    let export = Export { base: &job.backbone.path };
    Ok(TaskSetup {
        name: name.clone(),
        adapter,
        adapter_config: Value::Object(plan.config.adapter_config(model.config(), &plan.plan, &export)),
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

/// The data of a task: its own, else the job's.
fn data_of<'a>(job: &'a Job, spec: &'a TaskSpec) -> Result<&'a DataSpec> {
    spec.data.as_ref().or(job.spec.data.as_ref()).ok_or_else(|| {
        pleach_base::code::BAD_VALUE
            .error(format!("spec.tasks.{}: has no data", spec.name))
            .hint("give `spec.data`, or `data` in the task")
    })
}
