//! The two sides of a comparison: PEFT, and Pleach as a user runs it. Both read the same rows in the same order, and begin with
//! the same adapter.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::inputs::Inputs;
use super::process::{self, Ran};
use super::trace::{Step, Trace};
use super::workload::{Dtype, Workload};

/// Longest row of any workload.
const LONGEST: u32 = 2048;
const DECODER: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const ENCODER: &[&str] = &["query", "key", "value", "dense"];

/// What both sides are told.
pub(in crate::bench) struct Around<'a> {
    pub(in crate::bench) workload: &'a Workload,
    pub(in crate::bench) inputs: &'a Inputs,
    /// For logs, job files, stores.
    pub(in crate::bench) folder: &'a Path,
    /// Where `pleach` and `pleach-worker` are.
    pub(in crate::bench) programs: PathBuf,
    /// `cpu` or `cuda`.
    pub(in crate::bench) device: &'a str,
    pub(in crate::bench) cores: u32,
    pub(in crate::bench) steps: u32,
}

impl Around<'_> {
    fn gpu(&self) -> bool {
        self.device != "cpu"
    }

    fn threads(&self, processes: u32) -> u32 {
        (self.cores / processes).max(1)
    }

    /// `2 processes x 1 thread`.
    pub(super) fn how(&self, processes: u32) -> String {
        let many =
            |count: u32, what: &str, plural: &str| format!("{count} {what}{}", if count == 1 { "" } else { plural });
        let threads = many(self.threads(processes), "thread", "s");
        format!("{} x {threads}", many(processes, "process", "es"))
    }
}

/// What `peft_run.py` says last.
#[derive(Debug, Deserialize)]
struct Told {
    losses: Vec<f64>,
    tokens: Vec<u64>,
    ends: Vec<f64>,
    versions: BTreeMap<String, String>,
}

/// Trains one job by PEFT.
pub(super) fn peft(around: &Around<'_>, job: usize, processes: u32) -> Result<(Trace, BTreeMap<String, String>)> {
    let log = around.folder.join("peft.log");
    let ran = process::run(&mut peft_command(around, job, processes, around.steps), &log, around.gpu())?;
    let told = last_line(&ran)?;
    Ok((trace(&ran, vec![told.steps()]), told.versions))
}

/// Trains all jobs by PEFT at the same time, a few steps of each, for the memory that it takes.
pub(super) fn peft_at_once(around: &Around<'_>, steps: u32) -> Result<u64> {
    let mut commands: Vec<_> =
        (0..around.workload.ranks.len()).map(|job| peft_command(around, job, 1, steps)).collect();
    let ran = process::run_all(&mut commands, &around.folder.join("at-once.log"), around.gpu())?;
    Ok(ran.iter().map(|ran| ran.peak_bytes).max().unwrap_or_default())
}

fn peft_command(around: &Around<'_>, job: usize, processes: u32, steps: u32) -> Command {
    let Around { workload, inputs, .. } = around;
    let mut command = Command::new(&inputs.python);
    if processes > 1 {
        command.args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", &processes.to_string()]);
    }
    command.arg(&inputs.script).arg(&inputs.model).arg(&inputs.data[job]);
    let numbers = [
        ("--batch", workload.batch / processes),
        ("--steps", steps),
        ("--rank", workload.ranks[job]),
        ("--threads", around.threads(processes)),
        ("--seed", u32::try_from(job).unwrap_or(0)),
    ];
    for (name, value) in numbers {
        command.args([name, &value.to_string()]);
    }
    command.args(["--dtype", workload.dtype.torch(), "--device", around.device]);
    command
}

fn last_line(ran: &Ran) -> Result<Told> {
    let line = ran.stdout.lines().last().context("the baseline printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("the baseline's last line is no result: {line}"))
}

impl Told {
    fn steps(&self) -> Vec<Step> {
        let marks = self.losses.iter().zip(&self.tokens).zip(&self.ends);
        marks.map(|((loss, tokens), end)| Step { loss: *loss, tokens: *tokens, seconds: None, end: *end }).collect()
    }
}

fn trace(ran: &Ran, jobs: Vec<Vec<Step>>) -> Trace {
    let (begun, wall) = (ran.begun, ran.wall.as_secs_f64());
    Trace { begun, wall, peak_bytes: ran.peak_bytes, gpu_mib: ran.gpu_mib, jobs }
}

/// Where a job of Pleach keeps its checkpoints.
pub(in crate::bench) struct Keeping {
    /// A folder, or `s3://bucket/prefix`.
    pub(in crate::bench) store: String,
    /// What else the job file says of checkpoints.
    pub(in crate::bench) options: Value,
    /// Credentials and the like.
    pub(in crate::bench) environment: Vec<(&'static str, String)>,
}

impl Keeping {
    /// In a folder beside the job, only at its end.
    pub(in crate::bench) fn here(around: &Around<'_>) -> Self {
        let store = around.folder.join("store").display().to_string();
        Self { store, options: json!({}), environment: Vec::new() }
    }
}

/// Trains all jobs of the workload by `pleach train`, as tasks of one job on one worker.
pub(in crate::bench) fn pleach(around: &Around<'_>, keeping: &Keeping) -> Result<Trace> {
    let (state, steps) = (around.folder.join("state"), around.folder.join("steps.jsonl"));
    for old in [&state, &around.folder.join("store")] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot empty {}", old.display()))?;
        }
    }
    let job = around.folder.join("job.json");
    fs::write(&job, serde_json::to_string_pretty(&job_file(around, keeping))?)?;
    let mut command = Command::new(around.programs.join("pleach"));
    command.arg("train").arg(&job).args(["--device", around.device, "--state"]).arg(&state);
    command.arg("--steps").arg(&steps).envs(keeping.environment.iter().map(|(name, value)| (name, value)));
    let ran = process::run(&mut command, &around.folder.join("pleach.log"), around.gpu())?;
    let text = fs::read_to_string(&steps).with_context(|| format!("cannot read {}", steps.display()))?;
    Ok(trace(&ran, rows(&text, around.workload.ranks.len(), around.steps)?))
}

fn task_name(job: usize) -> String {
    format!("job-{job}")
}

fn job_file(around: &Around<'_>, keeping: &Keeping) -> Value {
    let Around { workload, inputs, .. } = around;
    let (task, targets) =
        if workload.classifies { ("sequence_classification", ENCODER) } else { ("causal_lm", DECODER) };
    let dtype = match workload.dtype {
        Dtype::Float32 => "fp32",
        Dtype::BFloat16 => "bf16",
    };
    let mut checkpoint = keeping.options.clone();
    checkpoint["store"] = json!(keeping.store);
    let tasks = workload.ranks.iter().enumerate().map(|(job, rank)| {
        json!({
            "name": task_name(job),
            "init_from": inputs.adapters[job],
            "data": {"source": inputs.data[job]},
            "adapter": {"method": "lora", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets},
        })
    });
    let tasks: Vec<_> = tasks.collect();
    json!({
        "apiVersion": "pleach.dev/v1",
        "kind": "Job",
        "metadata": {"name": workload.name},
        "spec": {
            "backbone": {"path": inputs.model, "dtype": dtype},
            "workers": {"min": 1, "max": 1, "threads": around.cores},
            "data": {"source": inputs.data[0], "task": task, "shuffle": false, "max_length": LONGEST},
            "train": {
                "global_batch": workload.batch,
                "max_steps": around.steps,
                "optimizer": {"name": "adamw", "lr": 1e-3},
                "max_grad_norm": 1.0,
            },
            "tasks": tasks,
            "checkpoint": checkpoint,
        },
    })
}

/// Steps of each job from the lines of `pleach train --steps`.
fn rows(text: &str, jobs: usize, steps: u32) -> Result<Vec<Vec<Step>>> {
    #[derive(Deserialize)]
    struct Row {
        task: String,
        step: u64,
        loss: f64,
        tokens: u64,
        seconds: f64,
        unix_ms: f64,
    }
    let mut found = vec![Vec::new(); jobs];
    for line in text.lines() {
        let row: Row = serde_json::from_str(line).with_context(|| format!("no step: {line}"))?;
        let job = (0..jobs).find(|job| task_name(*job) == row.task).with_context(|| format!("whose step? {line}"))?;
        if row.step != found[job].len() as u64 + 1 {
            bail!("{}: step {} follows {} others", row.task, row.step, found[job].len());
        }
        let (end, seconds) = (row.unix_ms / 1e3, Some(row.seconds));
        found[job].push(Step { loss: row.loss, tokens: row.tokens, seconds, end });
    }
    match found.iter().position(|job| job.len() != steps as usize) {
        None => Ok(found),
        Some(job) => bail!("{} told {} of its {steps} steps", task_name(job), found[job].len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_apart_by_task_and_none_may_be_missing() {
        let line = |task: &str, step: u64| {
            format!(
                r#"{{"task": "{task}", "step": {step}, "loss": 0.5, "tokens": 4, "seconds": 0.1, "unix_ms": 1500}}"#
            )
        };
        let text = [line("job-0", 1), line("job-1", 1), line("job-1", 2), line("job-0", 2)].join("\n");
        let found = rows(&text, 2, 2).unwrap();
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(found[0][0], Step { loss: 0.5, tokens: 4, seconds: Some(0.1), end: 1.5 });
        assert!(rows(&text, 2, 3).unwrap_err().to_string().contains("told 2 of its 3 steps"));
        assert!(rows(&[line("job-0", 1), line("job-0", 3)].join("\n"), 1, 2).is_err());
        assert!(rows(&line("job-7", 1), 1, 1).is_err());
    }
}
