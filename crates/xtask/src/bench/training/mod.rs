//! A training measured on both sides: `w1`, `w1-bf16`, `w2`, `w3`, `w5`, `w6`.
//!
//! First both sides train once, and their losses must agree. Then they take turns, so that what the machine does otherwise
//! meets both; what is compared are medians. Pleach runs as by default, one worker with all cores; of the baseline's ways,
//! each figure is that of the best.

mod chart;
pub(super) mod inputs;
pub(super) mod process;
pub(super) mod sides;
pub(super) mod trace;
pub(super) mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::machine::{self, Others, Taken};
use super::{Args, programs};
use crate::paths::Paths;
use crate::{gpu, ui};
use sides::{Around, Keeping};
use trace::{Agreement, Run, Trace, median};
use workload::{Figure, Workload};

/// Steps of each job when all of the baseline's jobs run at once, for their memory alone.
const AT_ONCE_STEPS: u32 = 3;
/// Floating point operations a second that makers promise for bfloat16 without sparsity, by part of the GPU's name.
const PROMISED: &[(&str, f64)] = &[("H100", 989e12), ("H200", 989e12), ("A100", 312e12)];

/// Everything that is kept of a measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) taken: Taken,
    pub(super) versions: BTreeMap<String, String>,
    /// GFLOP/s of a matrix product on this machine, by dtype.
    pub(super) floor: BTreeMap<String, f64>,
    /// Floating point operations of a token's matrix products.
    pub(super) flops_per_token: f64,
    pub(super) losses: Agreement,
    pub(super) arms: Vec<Arm>,
    /// The most memory of all of the baseline's jobs at once, where there are several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) at_once_mib: Option<f64>,
    pub(super) figures: Vec<Found>,
}

/// One way of training, and its runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Arm {
    pub(super) system: String,
    pub(super) how: String,
    /// Share of the floor that the median speed is.
    pub(super) of_floor: f64,
    pub(super) runs: Vec<Run>,
}

impl Arm {
    pub(super) fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of))
    }
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) figure: Figure,
    pub(super) baseline: f64,
    pub(super) pleach: f64,
    /// What the goal is about.
    pub(super) value: f64,
}

/// Measures one workload.
pub(super) fn measure(paths: &Paths, args: &Args, workload: &Workload) -> Result<Report> {
    let inputs = inputs::ensure(paths, workload, args.tiny)?;
    let folder = paths.target().join("bench").join(workload.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let device = if workload.needs_gpu && !args.tiny { "cuda" } else { "cpu" };
    let around = Around {
        workload,
        inputs: &inputs,
        folder: &folder,
        programs: programs(paths, args, device)?,
        device,
        cores: machine::cores(),
        steps: args.steps,
    };
    let floor = floor(&around)?;
    let others = Others::watch();
    let (losses, versions) = agreement(&around)?;
    let arms = rounds(&around, args.runs)?;
    let at_once = match workload.ranks.len() {
        1 => None,
        _ => Some((sides::peft_at_once(&around, AT_ONCE_STEPS)? >> 20) as f64),
    };
    let flops_per_token = flops(&around, &inputs.data[0])?;
    let gpus = if device == "cpu" { Vec::new() } else { gpu::gpus() };
    let mut report = Report {
        taken: Taken::now(paths, args, workload.name, gpus, &others)?,
        versions,
        flops_per_token,
        losses,
        arms,
        at_once_mib: at_once,
        figures: Vec::new(),
        floor,
    };
    let gflops = report.floor.get(workload.dtype.torch()).copied().unwrap_or(f64::NAN);
    for arm in &mut report.arms {
        arm.of_floor = arm.median(|run| run.tokens_per_second) * flops_per_token / (gflops * 1e9);
    }
    report.figures = figures(&report, workload);
    Ok(report)
}

/// Writes the plot of a report.
pub(super) fn draw(path: &Path, report: &Report) -> Result<()> {
    chart::draw(path, report)
}

/// One training on each side, which also brings all files into memory.
fn agreement(around: &Around<'_>) -> Result<(Agreement, BTreeMap<String, String>)> {
    let (mut theirs, mut versions) = (Vec::new(), BTreeMap::new());
    for job in 0..around.workload.ranks.len() {
        let (trace, named) = sides::peft(around, job, around.workload.processes[0])?;
        theirs.push(trace);
        versions = named;
    }
    let ours = sides::pleach(around, &Keeping::here(around))?;
    let found = trace::agree(&theirs, &[ours], around.workload.dtype.tolerance())?;
    ui::say("losses", format!("{} steps, at most {:.1e} apart", found.steps, found.largest));
    Ok((found, versions))
}

/// All ways in turn, again and again.
fn rounds(around: &Around<'_>, rounds: u32) -> Result<Vec<Arm>> {
    let arm = |system: &str, how: String| Arm { system: system.to_owned(), how, of_floor: 0.0, runs: Vec::new() };
    let processes = around.workload.processes;
    let mut arms: Vec<_> = processes.iter().map(|count| arm("PEFT", around.how(*count))).collect();
    arms.push(arm("Pleach", around.how(1)));
    for round in 1..=rounds {
        for (index, arm) in arms.iter_mut().enumerate() {
            let traces: Vec<Trace> = match processes.get(index) {
                Some(count) => (0..around.workload.ranks.len())
                    .map(|job| Ok(sides::peft(around, job, *count)?.0))
                    .collect::<Result<_>>()?,
                None => vec![sides::pleach(around, &Keeping::here(around))?],
            };
            let run = Run::of(&traces);
            ui::say(
                &format!("round {round}"),
                format!(
                    "{:6} {:22} {:>7.0} tokens/s  start-up {:>5.2} s  wall {:>6.1} s  {:>6.0} MiB",
                    arm.system, arm.how, run.tokens_per_second, run.start_up_seconds, run.wall_seconds, run.peak_mib
                ),
            );
            arm.runs.push(run);
        }
    }
    Ok(arms)
}

/// Each figure of Pleach against the best that the baseline has for it.
fn figures(report: &Report, workload: &Workload) -> Vec<Found> {
    let (theirs, ours): (Vec<_>, Vec<_>) = report.arms.iter().partition(|arm| arm.system != "Pleach");
    let Some(ours) = ours.first() else { return Vec::new() };
    let highest = |of: fn(&Run) -> f64| theirs.iter().map(|arm| arm.median(of)).fold(0.0, f64::max);
    let lowest = |of: fn(&Run) -> f64| theirs.iter().map(|arm| arm.median(of)).fold(f64::INFINITY, f64::min);
    let tokens = |run: &Run| run.tokens_per_second;
    let memory = |run: &Run| run.gpu_mib.map_or(run.peak_mib, |gpu| gpu as f64);
    let over = |figure, baseline: f64, pleach: f64| Found { figure, baseline, pleach, value: pleach / baseline };
    let mut found = vec![
        over(Figure::Tokens, highest(tokens), ours.median(tokens)),
        over(Figure::Wall, lowest(|run| run.wall_seconds), ours.median(|run| run.wall_seconds)),
        over(Figure::Memory, report.at_once_mib.unwrap_or_else(|| lowest(memory)), ours.median(memory)),
    ];
    if workload.ranks.len() == 1 {
        let (baseline, pleach) = (lowest(|run| run.start_up_seconds), ours.median(|run| run.start_up_seconds));
        found.push(Found { figure: Figure::StartUp, baseline, pleach, value: baseline / pleach });
    }
    let promised =
        report.taken.machine.gpus.first().and_then(|gpu| PROMISED.iter().find(|(name, _)| gpu.contains(name)));
    if let Some((_, flops)) = promised {
        let share = |tokens: f64| tokens * report.flops_per_token / flops;
        let (baseline, pleach) = (share(highest(tokens)), share(ours.median(tokens)));
        found.push(Found { figure: Figure::Utilisation, baseline, pleach, value: pleach });
    }
    found
}

/// GFLOP/s of matrix products with all cores, or on the GPU.
fn floor(around: &Around<'_>) -> Result<BTreeMap<String, f64>> {
    #[derive(Deserialize)]
    struct Told {
        gflops: BTreeMap<String, f64>,
    }
    let mut command = Command::new(&around.inputs.python);
    command.arg(&around.inputs.script).args(["--floor", "--device", around.device]);
    command.args(["--threads", &around.cores.to_string()]);
    let ran = process::run(&mut command, &around.folder.join("floor.log"), false)?;
    let told: Told = serde_json::from_str(ran.stdout.trim()).context("the floor's measurement printed no result")?;
    Ok(told.gflops)
}

/// Of a token: four for every weight of the linear maps, since the frozen ones get no gradient; and for attention's two
/// products, forward and twice that backward, twelve for every other token that it sees at every dimension of every layer.
fn flops(around: &Around<'_>, data: &Path) -> Result<f64> {
    #[derive(Deserialize)]
    struct Row {
        input_ids: Vec<u32>,
    }
    let text = fs::read_to_string(data).with_context(|| format!("cannot read {}", data.display()))?;
    let (mut tokens, mut pairs) = (0.0, 0.0);
    for line in text.lines() {
        let row: Row = serde_json::from_str(line).with_context(|| format!("{}: no row", data.display()))?;
        let length = row.input_ids.len() as f64;
        tokens += length;
        // A decoder's token sees the half of its row that came before.
        pairs += if around.workload.classifies { length * length } else { length * length / 2.0 };
    }
    let shape = &around.inputs.shape;
    Ok(4.0 * shape.linear_params as f64 + 12.0 * (shape.hidden * shape.layers) as f64 * pairs / tokens)
}

#[cfg(test)]
pub(super) mod tests;
