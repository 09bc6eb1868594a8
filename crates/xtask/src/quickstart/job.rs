//! The job file of the quickstart, and running it as a user would: `pleach train`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;
use serde::Deserialize;

use super::Args;
use crate::{cmd, ui};

/// Name of the one task.
const TASK: &str = "crates";

/// Values of metrics by name.
pub(super) type Metrics = BTreeMap<String, f64>;

/// One training.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) before: Metrics,
    pub(super) after: Metrics,
    /// Loss of each step, by step.
    pub(super) losses: Vec<(u64, f64)>,
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    pub(super) trainable_params: u64,
    pub(super) restarts: u64,
    /// Address of the checkpoint: store and folder.
    pub(super) checkpoint: String,
}

/// The job file, and where it keeps things.
pub(super) struct File {
    path: PathBuf,
    folder: PathBuf,
    store: String,
    /// Begins the name of every job of this run.
    name: String,
}

impl File {
    /// Writes `job.yaml`, and empties the default store of earlier runs.
    pub(super) fn write(folder: &Path, model: &Path, args: &Args) -> Result<Self> {
        for old in ["store", "state"] {
            let old = folder.join(old);
            if old.exists() {
                fs::remove_dir_all(&old).with_context(|| format!("cannot empty {}", old.display()))?;
            }
        }
        // A store of the user's own is never emptied: there each run is a job of its own.
        let name = match &args.store {
            Some(_) => format!("quickstart-{}", std::process::id()),
            None => "quickstart".to_owned(),
        };
        let store = args.store.clone().unwrap_or_else(|| folder.join("store").display().to_string());
        let path = folder.join("job.yaml");
        fs::write(&path, text(folder, model, &store, args))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, folder: folder.to_owned(), store, name })
    }

    /// Trains with one seed. Without `before`, the job itself measures first.
    pub(super) fn train(
        &self,
        programs: &Path,
        args: &Args,
        seed: u64,
        before: Option<Metrics>,
        kill_one: bool,
    ) -> Result<Run> {
        ui::say("training", format!("seed {seed}, {} workers", args.workers));
        let start = Instant::now();
        let mut command = Command::new(programs.join("pleach"));
        command.arg("train").arg(&self.path).args(["-o", "json", "--workers", &args.workers.to_string()]);
        command.args(["--device", &args.device, "--state"]).arg(self.folder.join("state"));
        let name = format!("{}-{seed}", self.name);
        for set in [
            format!("metadata.name={name}"),
            format!("spec.train.seed={seed}"),
            format!("spec.eval.at_start={}", before.is_none()),
        ] {
            command.args(["--set", &set]);
        }
        let shown = cmd::show(&command);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let losses = follow(&mut child, kill_one)?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("`{shown}` failed ({})", out.status);
        }
        let result: JobOut =
            serde_json::from_slice(&out.stdout).context("cannot read what `pleach train -o json` said")?;
        self.result(result, seed, before, losses, start.elapsed().as_secs_f64())
    }

    fn result(
        &self,
        job: JobOut,
        seed: u64,
        before: Option<Metrics>,
        losses: Vec<(u64, f64)>,
        seconds: f64,
    ) -> Result<Run> {
        let restarts = job.restarts;
        let task = job.tasks.into_iter().find(|task| task.name == TASK).context("the job reports no task")?;
        let at = |wanted: u64| task.evals.iter().find(|eval| eval.step == wanted).map(|eval| eval.metrics.clone());
        let before = before.or_else(|| at(0)).context("no evaluation before the first step")?;
        let after = at(task.total_steps).context("no evaluation after the last step")?;
        let checkpoint = format!("{}/{}", self.store.trim_end_matches('/'), task.durable_folder);
        Ok(Run {
            seed,
            before,
            after,
            losses,
            seconds,
            tokens_per_second: task.tokens_per_second,
            trainable_params: task.trainable_params,
            restarts,
            checkpoint,
        })
    }
}

/// Passes on what the job says, gathers the losses, and kills one worker in the middle if asked to.
fn follow(child: &mut Child, mut kill_one: bool) -> Result<Vec<(u64, f64)>> {
    let pattern = Regex::new(r"step (\d+)/(\d+) .*loss ([0-9.eE+-]+|nan|inf)")?;
    let stderr = child.stderr.take().context("the job's messages are piped")?;
    let mut losses: BTreeMap<u64, f64> = BTreeMap::new();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        eprintln!("             {line}");
        let Some(found) = pattern.captures(&line) else { continue };
        let (step, total): (u64, u64) = (found[1].parse()?, found[2].parse()?);
        // After a restart a step may be done again: the later one counts.
        losses.insert(step, found[3].parse()?);
        if kill_one && 2 * step >= total {
            kill_one = false;
            kill_a_worker(child.id())?;
        }
    }
    Ok(losses.into_iter().collect())
}

fn kill_a_worker(parent: u32) -> Result<()> {
    let worker = children(parent)?.into_iter().last().context("the job has no worker process to kill")?;
    ui::say("killing", format!("worker process {worker}"));
    kill(Pid::from_raw(worker), Signal::SIGKILL).context("cannot kill the worker")
}

/// Process ids of the children of `parent` that are workers.
fn children(parent: u32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // `pid (name) state ppid ...`; the name is cut at 15 characters and may hold blanks.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        if head.ends_with("(pleach-worker") && rest.split_whitespace().nth(1) == Some(&parent.to_string()) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The part of `pleach train -o json` that the report needs.
#[derive(Debug, Deserialize)]
struct JobOut {
    restarts: u64,
    tasks: Vec<TaskOut>,
}

#[derive(Debug, Deserialize)]
struct TaskOut {
    name: String,
    total_steps: u64,
    tokens_per_second: f64,
    trainable_params: u64,
    durable_folder: String,
    evals: Vec<EvalOut>,
}

#[derive(Debug, Deserialize)]
struct EvalOut {
    step: u64,
    metrics: Metrics,
}

/// The job file. Paths are absolute, so that it can be used from anywhere.
fn text(folder: &Path, model: &Path, store: &str, args: &Args) -> String {
    let quote = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    format!(
        r#"# Written by `cargo xtask quickstart`; try `pleach plan` on it.
apiVersion: pleach.dev/v1
kind: Job
metadata: {{name: quickstart}}
spec:
  backbone: {{path: {model}}}
  workers: {{min: 1, max: {workers}}}
  data:
    source: {train}
    task: retrieval            # bring a query near its passage; the batch's other passages are the negatives
    text: "{{query}}"
    text_pair: "{{passage}}"
    max_length: 64
  train:
    global_batch: 32           # pairs per optimiser step, whatever the number of workers
    max_steps: 12
    optimizer: {{name: adamw, lr: 1e-3}}
    schedule: {{name: linear, warmup_steps: 2}}
    seed: 0
  tasks:
    - name: {TASK}
      adapter: {{method: lora, r: 8, lora_alpha: 16, target_modules: [query, key, value, intermediate.dense, output.dense]}}
  eval:
    source: {held_out}
    candidates: {candidates}
    metrics: [recall@1, mrr]
  checkpoint: {{store: {store}, every: 6}}
"#,
        model = quote(model),
        workers = args.workers,
        train = quote(&folder.join("train.jsonl")),
        held_out = quote(&folder.join("heldout.jsonl")),
        candidates = quote(&folder.join("candidates.jsonl")),
        store = quote(Path::new(store)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_read_off_the_lines_and_a_step_done_again_counts_once() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'crates  step 1/2  epoch 0.1  lr 1e-3  loss 2.5  x\\nhello\\ncrates  step 1/2  lr 1  loss 2.25\\ncrates  step 2/2  lr 1  loss 1e0\\n' >&2"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(follow(&mut child, false).unwrap(), [(1, 2.25), (2, 1.0)]);
        child.wait().unwrap();
    }

    #[test]
    fn only_workers_of_this_parent_are_found() {
        assert!(children(std::process::id()).unwrap().is_empty());
    }

    #[test]
    fn the_result_needs_both_measurements() {
        let file = File { path: "j".into(), folder: "f".into(), store: "s3://b/p/".into(), name: "q".into() };
        let job = |evals: &str| -> JobOut {
            serde_json::from_str(&format!(
                r#"{{"restarts": 0, "tasks": [{{"name": "crates", "total_steps": 2, "tokens_per_second": 1.0,
                    "trainable_params": 5, "durable_folder": "t/j/crates/steps/2", "evals": {evals}}}]}}"#
            ))
            .unwrap()
        };
        let both = job(r#"[{"step": 0, "metrics": {"mrr": 0.5}}, {"step": 2, "metrics": {"mrr": 0.6}}]"#);
        let run = file.result(both, 1, None, vec![], 1.0).unwrap();
        assert_eq!((run.before["mrr"], run.after["mrr"]), (0.5, 0.6));
        assert_eq!(run.checkpoint, "s3://b/p/t/j/crates/steps/2");
        let one = || job(r#"[{"step": 2, "metrics": {"mrr": 0.6}}]"#);
        assert!(file.result(one(), 1, None, vec![], 1.0).is_err());
        assert!(file.result(one(), 1, Some(Metrics::new()), vec![], 1.0).is_ok());
    }
}
