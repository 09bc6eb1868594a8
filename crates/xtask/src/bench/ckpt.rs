//! `ckpt`: what a durable checkpoint after every step costs the training thread, against the S3 server of the tests, which
//! shares this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::machine::{self, Others, Taken};
use super::training::sides::{self, Around, Keeping};
use super::training::trace::{Trace, WARM_UP, median};
use super::training::{inputs, workload};
use super::{Args, programs};
use crate::paths::Paths;
use crate::ui;

/// Share of a step that the training thread may stand still for a checkpoint.
pub(super) const MOST_STALL: f64 = 0.02;
const SECRET: &str = "bench-secret";

/// Everything that is kept of a measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) taken: Taken,
    /// With one checkpoint, at the end.
    pub(super) without: Vec<Pace>,
    /// With one after every step.
    pub(super) with: Vec<Pace>,
    /// What the thread stands still for a checkpoint, over what a step takes without.
    pub(super) stall: f64,
    /// How much longer a step takes from its end to the next one's, server and uploads included.
    pub(super) slowdown: f64,
}

/// One run, by mean over its steps but the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pace {
    /// From the end of one step to the end of the next.
    pub(super) interval_ms: f64,
    /// What of it was no step.
    pub(super) between_ms: f64,
    /// Steps that were in the store at the end.
    pub(super) durable_steps: usize,
}

/// Measures.
pub(super) fn measure(paths: &Paths, args: &Args) -> Result<Report> {
    let workload = workload::find("w1").context("there is no w1")?;
    let inputs = inputs::ensure(paths, workload, args.tiny)?;
    let folder = paths.target().join("bench/ckpt");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let programs = programs(paths, args, "cpu")?;
    let server = Server::start(&programs.join("pleach-s3d"), &folder.join("s3"))?;
    let around = Around {
        workload,
        inputs: &inputs,
        folder: &folder,
        programs,
        device: "cpu",
        cores: machine::cores(),
        steps: args.steps,
    };
    sides::pleach(&around, &Keeping::here(&around))?;
    let others = Others::watch();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..args.runs {
        for (every, paces) in [(false, &mut without), (true, &mut with)] {
            let prefix = format!("{round}-{every}");
            let trace = sides::pleach(&around, &server.keeping(&prefix, every))?;
            let pace = Pace { durable_steps: server.durable(&prefix), ..pace(&trace)? };
            let how = if every { "every step" } else { "at the end" };
            let text = format!("{:.2} ms a step, {:.2} ms between", pace.interval_ms, pace.between_ms);
            ui::say(how, format!("{text}, {} steps are durable", pace.durable_steps));
            if pace.durable_steps != if every { args.steps as usize } else { 1 } {
                bail!("{} of {} steps are in the store", pace.durable_steps, args.steps);
            }
            paces.push(pace);
        }
    }
    let of = |paces: &[Pace], part: fn(&Pace) -> f64| median(paces.iter().map(part));
    let interval = of(&without, |pace| pace.interval_ms);
    Ok(Report {
        taken: Taken::now(paths, args, "ckpt", Vec::new(), &others)?,
        stall: (of(&with, |pace| pace.between_ms) - of(&without, |pace| pace.between_ms)) / interval,
        slowdown: of(&with, |pace| pace.interval_ms) / interval - 1.0,
        without,
        with,
    })
}

fn pace(trace: &Trace) -> Result<Pace> {
    let steps = trace.jobs.first().context("a training without jobs")?;
    let (Some(before), Some(last)) = (steps.get(WARM_UP - 1), steps.last()) else { bail!("too few steps") };
    let counted = &steps[WARM_UP..];
    let inside: f64 = counted.iter().filter_map(|step| step.seconds).sum();
    let (all, count) = (last.end - before.end, counted.len().max(1) as f64);
    Ok(Pace { interval_ms: all / count * 1e3, between_ms: (all - inside) / count * 1e3, durable_steps: 0 })
}

/// The S3 server, until it is dropped.
struct Server {
    child: Child,
    told: Told,
}

/// What it says when it accepts connections.
#[derive(Deserialize)]
struct Told {
    endpoint: String,
    bucket: String,
    access_key: String,
    root: PathBuf,
}

impl Server {
    fn start(program: &Path, root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("cannot empty {}", root.display()))?;
        }
        fs::create_dir_all(root)?;
        let mut command = Command::new(program);
        command.arg("--root").arg(root).args(["--secret-key", SECRET]).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let told = serde_json::from_str(&line).with_context(|| format!("the S3 server said: {line}"))?;
        Ok(Self { child, told })
    }

    fn keeping(&self, prefix: &str, every: bool) -> Keeping {
        let Told { endpoint, bucket, access_key, .. } = &self.told;
        let mut options = json!({"endpoint": endpoint, "retention": {"last": 1_000_000}});
        if every {
            // With this lag no step is passed over for a newer one.
            options["every"] = json!(1);
            options["max_lag"] = json!(1);
        }
        let environment = vec![("AWS_ACCESS_KEY_ID", access_key.clone()), ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned())];
        Keeping { store: format!("s3://{bucket}/{prefix}"), options, environment }
    }

    /// Manifests that lie below a prefix: each is written when its step is complete.
    fn durable(&self, prefix: &str) -> usize {
        let files = walkdir::WalkDir::new(self.told.root.join(&self.told.bucket).join(prefix)).into_iter().flatten();
        files.filter(|file| file.file_name() == "manifest.json").count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::super::training::trace::Step;
    use super::*;

    #[test]
    fn what_is_no_step_is_between_steps() {
        let step = |end, seconds| Step { loss: 1.0, tokens: 1, seconds: Some(seconds), end };
        let steps = vec![step(9.0, 9.0), step(9.5, 0.1), step(10.0, 0.1), step(10.5, 0.25), step(11.0, 0.25)];
        let trace = Trace { begun: 0.0, wall: 1.0, peak_bytes: 0, gpu_mib: None, jobs: vec![steps] };
        let found = pace(&trace).unwrap();
        assert_eq!((found.interval_ms, found.between_ms), (500.0, 250.0));
        assert!(pace(&Trace { jobs: vec![Vec::new()], ..trace }).is_err());
    }
}
