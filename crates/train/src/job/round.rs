//! The loop itself: tasks take turns, one step each, until all are done or somebody asks to stop.

use std::sync::Arc;

use pleach_base::{Result, code};
use pleach_spec::job::Determinism;

use super::model::Warm;
use super::task::{Ground, JobTask};
use super::{JobContext, Outcome, broadcast, checkpoint};
use crate::engine::{Engine, StepResult};
use crate::memory;
use crate::observer::{Level, StepRow};

pub(super) fn run(cx: &JobContext<'_>, warm: &mut Warm) -> Result<Outcome> {
    cx.stop.check()?;
    hold_still(cx)?;
    let store = match cx.group.rank() {
        0 => {
            let store = checkpoint::open(&cx.job.spec.checkpoint)?;
            cx.runtime.block_on(store.probe())?;
            Some(store)
        }
        _ => None,
    };
    let (model, encoders) = warm.load(&cx.job, cx.group.device(), cx.observer.as_ref())?;
    broadcast::same(cx.group, &model.fingerprint, |ranks| {
        code::ADAPTER_BASE
            .error(format!("spec.backbone.path: ranks {ranks:?} hold another base model than rank 0"))
            .hint("every worker must read the same model folder")
    })?;
    cx.stop.check()?;
    let mut engine = Engine::new(model.backbone.as_ref(), cx.group, Arc::clone(&cx.observer), Arc::clone(&cx.clock));
    let ground = Ground { cx, model, store: store.as_ref() };
    let mut tasks = Vec::with_capacity(cx.job.spec.tasks.len());
    let plan = pleach_methods::plan_job(&cx.job, model.config())?;
    for (spec, plan) in cx.job.spec.tasks.iter().zip(&plan.tasks) {
        tasks.push(ground.prepare(&mut engine, encoders, spec, plan)?);
        cx.stop.check()?;
    }
    cx.observer.ready();
    Round { ground: &ground, engine, tasks }.run()
}

/// Strict mode needs one intra-op thread: element-wise functions round the tail of each thread's chunk differently.
fn hold_still(cx: &JobContext<'_>) -> Result<()> {
    if cx.job.spec.train.determinism != Determinism::Strict {
        return Ok(());
    }
    if cx.group.device() != tch::Device::Cpu {
        return Err(code::BAD_VALUE
            .error("spec.train.determinism: strict is promised on the CPU only")
            .hint("use `fast`, or workers with `--device cpu`"));
    }
    tch::set_num_threads(1);
    Ok(())
}

struct Round<'a> {
    ground: &'a Ground<'a>,
    engine: Engine<'a>,
    tasks: Vec<JobTask>,
}

impl Round<'_> {
    fn run(mut self) -> Result<Outcome> {
        self.evaluate_untrained()?;
        let drained = self.train()?;
        for index in 0..self.tasks.len() {
            self.tasks[index].save(&self.engine, self.ground)?;
        }
        for task in &self.tasks {
            if let Some(checkpoints) = &task.checkpoints {
                checkpoints.finish()?;
            }
        }
        let mut all_done = true;
        for task in &self.tasks {
            let step = self.engine.step(&task.name)?;
            self.ground.cx.observer.task(&task.status(step));
            all_done &= task.is_done(step);
        }
        Ok(if drained && !all_done { Outcome::Drained } else { Outcome::Finished })
    }

    fn evaluate_untrained(&mut self) -> Result<()> {
        let wanted = self.ground.cx.job.spec.eval.as_ref().is_some_and(|eval| eval.at_start);
        for index in 0..self.tasks.len() {
            if wanted && self.engine.step(&self.tasks[index].name)? == 0 {
                self.evaluate(index)?;
            }
        }
        Ok(())
    }

    /// Steps of all tasks in turn; true when it ended because a rank asked to drain.
    fn train(&mut self) -> Result<bool> {
        loop {
            let mut stepped = false;
            for index in 0..self.tasks.len() {
                let step = self.engine.step(&self.tasks[index].name)?;
                if self.tasks[index].is_done(step) {
                    continue;
                }
                stepped = true;
                if self.step(index, step)? {
                    return Ok(true);
                }
            }
            if !stepped {
                return Ok(false);
            }
        }
    }

    /// One step of one task; true when a rank asked to drain.
    fn step(&mut self, index: usize, step: u64) -> Result<bool> {
        let cx = self.ground.cx;
        cx.stop.check()?;
        let begun = cx.clock.elapsed();
        let task = &mut self.tasks[index];
        let batch = task.data.batch(step, cx.group)?;
        self.engine.forward_backward(&task.name, &batch)?;
        let result = self.engine.optim_step(&task.name, cx.stop.is_draining())?;
        let seconds = cx.clock.elapsed().saturating_sub(begun).as_secs_f64();
        task.metrics.clear();
        task.note("train/loss".to_owned(), result.loss);
        self.tell(index, &result, seconds);
        self.after(index, result.step)?;
        Ok(result.drain)
    }

    /// What the job file wants after this step: an evaluation, then a checkpoint that carries its result.
    fn after(&mut self, index: usize, step: u64) -> Result<()> {
        let job = &self.ground.cx.job.spec;
        let done = self.tasks[index].is_done(step);
        let every = |n: Option<u64>| n.is_some_and(|n| n > 0 && step.is_multiple_of(n));
        if job.eval.as_ref().is_some_and(|eval| done || every(eval.every)) {
            self.evaluate(index)?;
        }
        if done || every(Some(job.checkpoint.every)) {
            self.tasks[index].save(&self.engine, self.ground)?;
        }
        if done {
            self.ground.cx.observer.task(&self.tasks[index].status(step));
        }
        Ok(())
    }

    fn evaluate(&mut self, index: usize) -> Result<()> {
        let task = &mut self.tasks[index];
        let Some((set, metrics)) = &task.eval else { return Ok(()) };
        let row = self.engine.evaluate(&task.name, set, metrics)?;
        for (name, value) in &row.metrics {
            task.note(format!("eval/{name}"), *value);
        }
        let observer = &self.ground.cx.observer;
        observer.eval(&row);
        observer.log(Level::Info, &self.labelled(index, &row.line()));
        Ok(())
    }

    fn tell(&self, index: usize, result: &StepResult, seconds: f64) {
        let cx = self.ground.cx;
        let task = &self.tasks[index];
        let row = StepRow {
            task: task.name.clone(),
            step: result.step,
            total_steps: task.data.plan().total_steps(),
            epoch: task.data.epoch(result.step),
            loss: result.loss,
            grad_norm: result.grad_norm,
            learning_rate: result.learning_rate,
            tokens: result.tokens,
            seconds,
            digest: result.digest.clone(),
            skipped: result.skipped,
            world: cx.group.world() as u32,
            rss_bytes: memory::resident_bytes(),
        };
        cx.observer.step(&row);
        let every = cx.job.spec.train.log_every.max(1);
        if result.skipped || result.step.is_multiple_of(every) || task.is_done(result.step) {
            let level = if result.skipped { Level::Warn } else { Level::Info };
            cx.observer.log(level, &self.labelled(index, &row.line()));
        }
    }

    /// The line, with the task's name in front when there are several.
    fn labelled(&self, index: usize, line: &str) -> String {
        if self.tasks.len() == 1 { line.to_owned() } else { format!("{}: {line}", self.tasks[index].name) }
    }
}
