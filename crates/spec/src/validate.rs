//! What a schema cannot say: ranges that depend on other fields, names, and choices that exclude each other.
//!
//! Files, models and methods are not looked at: their crates do that when the job is planned.

use std::collections::BTreeSet;

use pleach_base::{Error, Result, code, suggest};

use crate::job::{
    CheckpointSpec, DataSpec, DataTask, EvalSpec, Job, JobSpec, OptimizerSpec, Section, TaskSpec, TrainSpec,
    WorkersSpec,
};

impl Job {
    /// Checks what a schema cannot say. [`crate::load`] calls it; callers that build a job themselves should too.
    ///
    /// # Errors
    /// `BAD_VALUE` with the path of the first wrong key.
    pub fn validate(&self) -> Result<()> {
        name("metadata.name", &self.metadata.name)?;
        name("metadata.tenant", &self.metadata.tenant)?;
        let spec = &self.spec;
        filled("spec.backbone.path", &spec.backbone.path)?;
        ensure(spec.backbone.num_labels != Some(0), "spec.backbone.num_labels", "must be at least 1")?;
        workers(&spec.workers)?;
        train(&spec.train)?;
        optimizer("spec.train.optimizer", &spec.train.optimizer)?;
        if let Some(data_spec) = &spec.data {
            data("spec.data", data_spec)?;
        }
        let router = spec.router.as_ref().and_then(Section::router_task);
        ensure(router.is_some() || !spec.tasks.is_empty(), "spec.tasks", "at least one task is needed")?;
        tasks(&spec.tasks, spec.data.is_some())?;
        if let Some(router) = router {
            router_task(router, spec)?;
        }
        if let Some(eval_spec) = &spec.eval {
            eval(eval_spec)?;
        }
        checkpoint(&spec.checkpoint)?;
        let sections = [
            ("router", &spec.router),
            ("strategy", &spec.strategy),
            ("attention", &spec.attention),
            ("compress", &spec.compress),
        ];
        for (key, given) in sections {
            if let Some(given) = given {
                section(&format!("spec.{key}"), given)?;
            }
        }
        Ok(())
    }
}

fn bad(at: &str, why: impl std::fmt::Display) -> Error {
    code::BAD_VALUE.error(format!("{at}: {why}"))
}

fn ensure(holds: bool, at: &str, why: impl std::fmt::Display) -> Result<()> {
    if holds { Ok(()) } else { Err(bad(at, why)) }
}

fn filled(at: &str, text: &str) -> Result<()> {
    ensure(!text.trim().is_empty(), at, "must not be empty")
}

/// Names become folder names and label values: what a DNS label allows.
fn name(at: &str, text: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    ensure(good, at, format_args!("`{text}` is not a name"))
        .map_err(|error| error.hint("lower-case letters, digits and `-` inside, at most 63"))
}

fn workers(spec: &WorkersSpec) -> Result<()> {
    ensure(spec.min >= 1, "spec.workers.min", "must be at least 1")?;
    ensure(spec.min <= spec.max, "spec.workers.max", format_args!("{} is below workers.min = {}", spec.max, spec.min))?;
    ensure(spec.threads != Some(0), "spec.workers.threads", "must be at least 1")
}

fn train(spec: &TrainSpec) -> Result<()> {
    let at = |key: &str| format!("spec.train.{key}");
    ensure(spec.global_batch >= 1, &at("global_batch"), "must be at least 1")?;
    if let Some(rows) = spec.micro_batch {
        ensure(rows >= 1, &at("micro_batch"), "must be at least 1")?;
        ensure(
            rows <= spec.global_batch,
            &at("micro_batch"),
            format_args!("{rows} is more than global_batch = {}", spec.global_batch),
        )?;
    }
    if let Some(lanes) = spec.lanes {
        ensure(
            lanes >= 1 && spec.global_batch.is_multiple_of(lanes),
            &at("lanes"),
            format_args!("{lanes} does not divide global_batch = {}", spec.global_batch),
        )?;
    }
    match (spec.epochs, spec.max_steps) {
        (None, None) => {
            return Err(bad("spec.train", "neither `epochs` nor `max_steps` is given").hint("give one of them"));
        }
        (Some(_), Some(_)) => {
            return Err(bad(&at("max_steps"), "both `epochs` and `max_steps` are given").hint("keep one of them"));
        }
        _ => {}
    }
    ensure(spec.epochs != Some(0), &at("epochs"), "must be at least 1")?;
    ensure(spec.max_steps != Some(0), &at("max_steps"), "must be at least 1")?;
    number(&at("max_grad_norm"), spec.max_grad_norm, |x| x >= 0.0, "must be 0 (no clipping) or more")?;
    number(&at("temperature"), spec.temperature, |x| x > 0.0, "must be above 0")?;
    ensure(spec.log_every >= 1, &at("log_every"), "must be at least 1")
}

fn number(at: &str, value: f64, good: impl Fn(f64) -> bool, why: &str) -> Result<()> {
    ensure(value.is_finite() && good(value), at, format_args!("{value} {why}"))
}

fn optimizer(at: &str, spec: &OptimizerSpec) -> Result<()> {
    number(&format!("{at}.lr"), spec.lr, |x| x > 0.0, "must be above 0")?;
    for (index, beta) in spec.betas.iter().enumerate() {
        number(&format!("{at}.betas[{index}]"), *beta, |x| (0.0..1.0).contains(&x), "must be in 0..1, below 1")?;
    }
    number(&format!("{at}.eps"), spec.eps, |x| x > 0.0, "must be above 0")?;
    number(&format!("{at}.weight_decay"), spec.weight_decay, |x| x >= 0.0, "must be 0 or more")?;
    number(&format!("{at}.momentum"), spec.momentum, |x| (0.0..1.0).contains(&x), "must be in 0..1, below 1")
}

fn data(at: &str, spec: &DataSpec) -> Result<()> {
    filled(&format!("{at}.source"), &spec.source)?;
    filled(&format!("{at}.label"), &spec.label)?;
    ensure(spec.max_length >= 1, &format!("{at}.max_length"), "must be at least 1")?;
    // With neither template the rows bring ready ids.
    if spec.task == DataTask::Retrieval && spec.text.is_some() {
        ensure(spec.text_pair.is_some(), at, "retrieval needs `text_pair`, the template of the passage")?;
    }
    Ok(())
}

fn tasks(tasks: &[TaskSpec], shared_data: bool) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (index, task) in tasks.iter().enumerate() {
        let at = format!("spec.tasks[{index}]");
        name(&format!("{at}.name"), &task.name)?;
        ensure(
            seen.insert(task.name.as_str()),
            &format!("{at}.name"),
            format_args!("`{}` is the name of an earlier task", task.name),
        )?;
        section(&format!("{at}.adapter"), &task.adapter)?;
        match &task.data {
            Some(own) => data(&format!("{at}.data"), own)?,
            None => ensure(shared_data, &at, "has no `data`, and there is no `spec.data`")?,
        }
        if let Some(own) = &task.optimizer {
            optimizer(&format!("{at}.optimizer"), own)?;
        }
    }
    Ok(())
}

/// The task in which a router over a list of experts learns.
fn router_task(task: &str, spec: &JobSpec) -> Result<()> {
    name("spec.router.name", task)?;
    let taken = spec.tasks.iter().any(|other| other.name == task);
    ensure(!taken, "spec.router.name", format_args!("`{task}` is the name of a task"))?;
    ensure(spec.data.is_some(), "spec.router", "a router over `experts` learns from `spec.data`, and there is none")
}

fn section(at: &str, section: &Section) -> Result<()> {
    filled(&format!("{at}.method"), &section.method)
}

fn eval(spec: &EvalSpec) -> Result<()> {
    filled("spec.eval.source", &spec.source)?;
    ensure(spec.every != Some(0), "spec.eval.every", "must be at least 1")?;
    for (index, metric) in spec.metrics.iter().enumerate() {
        let known = match metric.strip_prefix("recall@") {
            Some(k) => k.parse::<u32>().is_ok_and(|k| k >= 1),
            None => ["loss", "accuracy", "mrr"].contains(&metric.as_str()),
        };
        if !known {
            let names = ["loss", "accuracy", "recall@1", "mrr"];
            return Err(bad(&format!("spec.eval.metrics[{index}]"), format_args!("no metric `{metric}`"))
                .hint(suggest::did_you_mean(metric, names)));
        }
    }
    Ok(())
}

fn checkpoint(spec: &CheckpointSpec) -> Result<()> {
    filled("spec.checkpoint.store", &spec.store)?;
    ensure(spec.every >= 1, "spec.checkpoint.every", "must be at least 1")?;
    ensure(spec.retention.last >= 1, "spec.checkpoint.retention.last", "must be at least 1")?;
    match &spec.retention.best {
        Some(best) if best.strip_prefix("eval/").is_none_or(str::is_empty) => {
            Err(bad("spec.checkpoint.retention.best", format_args!("`{best}` names no metric"))
                .hint("for example `eval/loss` (lowest) or `eval/mrr` (highest)"))
        }
        _ => Ok(()),
    }
}
