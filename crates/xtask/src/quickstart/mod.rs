//! `cargo xtask quickstart`: a real pretrained model learns to find crates by their description, on this machine.
//!
//! Everything is real and small: a BERT of 22.7 M parameters, texts of the crates that building Pleach has fetched, a
//! coordinator, two worker processes, a checkpoint store. What it trains opens in PEFT.

mod chart;
mod corpus;
mod job;
mod markdown;
mod report;
mod split;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::paths::Paths;
use crate::{cmd, setup, test, ui};
use corpus::Entry;
use job::Run;
use split::Split;

/// Share of the crates that is only measured with.
const HELD_OUT_PERCENT: usize = 40;
/// Below these, the numbers would mean little.
const LEAST_CRATES: usize = 300;
const LEAST_QUERIES: usize = 80;
/// What recall@1 must gain on average.
const LEAST_GAIN: f64 = 0.03;

/// `quickstart` on the command line.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Seeds of initialisation and order; one training each
    #[arg(long, value_delimiter = ',', default_value = "0,1,2")]
    pub(crate) seeds: Vec<u64>,
    /// Worker processes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) workers: u32,
    /// Where checkpoints go: a folder or s3://bucket/prefix (AWS_ENDPOINT_URL and keys from the environment)
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Kill one worker in the middle of the first training: it must still end well
    #[arg(long)]
    pub(crate) kill_one: bool,
    /// Device of the workers: `cpu`, or `cuda` for one GPU each
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Only write the dataset and the job file
    #[arg(long)]
    pub(crate) data_only: bool,
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    if !args.data_only {
        ui::say("building", "pleach and pleach-worker");
        test::build_programs(paths)?;
    }
    with_programs(paths, args, &paths.target().join("debug"))
}

/// The same with programs that are built already.
pub(crate) fn with_programs(paths: &Paths, args: &Args, programs: &Path) -> Result<()> {
    let start = Instant::now();
    let model = setup::minilm(paths)?;
    let folder = paths.root.join("target/quickstart");
    // Two runs in one checkout would empty each other's store.
    let _lock = setup::Lock::take(&folder, "run")?;
    let split = dataset(paths)?;
    write(&folder, &split)?;
    let job = job::File::write(&folder, &model, args)?;
    ui::say(
        "data",
        format!(
            "{} crates in {} families: {} train, {} held out",
            split.train.len() + split.held_out.len(),
            split.families,
            split.train.len(),
            split.held_out.len()
        ),
    );
    if args.data_only {
        ui::say("written", paths.show(&folder));
        return Ok(());
    }
    let mut runs: Vec<Run> = Vec::new();
    for (index, seed) in args.seeds.iter().enumerate() {
        // The adapter is the identity before its first step, so all seeds begin with the same measurement.
        let before = runs.first().map(|run| run.before.clone());
        runs.push(job.train(programs, args, *seed, before, args.kill_one && index == 0)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let curve = folder.join("curve.svg");
    chart::draw(&curve, &runs)?;
    report::write(&folder.join("report.json"), &split, args, &runs, seconds)?;
    report::print(paths, &folder, &runs, seconds);
    let gain = report::mean_gain(&runs);
    if gain < LEAST_GAIN {
        bail!("recall@1 rose by {gain:.3} on average; {LEAST_GAIN} or more was expected");
    }
    Ok(())
}

fn dataset(paths: &Paths) -> Result<Split> {
    // Sources of crates that this machine's build has not needed are fetched too: the data must not depend on it.
    cmd::run(cmd::cargo(paths).args(["fetch", "--quiet", "--locked"]))?;
    let split = split::split(corpus::read(paths)?, HELD_OUT_PERCENT);
    let crates = split.train.len() + split.held_out.len();
    if crates < LEAST_CRATES || split.held_out.len() < LEAST_QUERIES {
        bail!(
            "only {crates} crates with a usable description and README, {} of them held out; {LEAST_CRATES} and {LEAST_QUERIES} are needed",
            split.held_out.len()
        );
    }
    Ok(split)
}

/// `train.jsonl`, `heldout.jsonl`, and the passages of all crates in `candidates.jsonl`.
fn write(folder: &Path, split: &Split) -> Result<()> {
    let pair = |entry: &Entry| json!({"crate": entry.name, "query": entry.query, "passage": entry.passage});
    let passage = |entry: &Entry| json!({"crate": entry.name, "passage": entry.passage});
    lines(&folder.join("train.jsonl"), split.train.iter().map(pair))?;
    lines(&folder.join("heldout.jsonl"), split.held_out.iter().map(pair))?;
    lines(&folder.join("candidates.jsonl"), split.held_out.iter().chain(&split.train).map(passage))
}

fn lines(path: &PathBuf, rows: impl Iterator<Item = serde_json::Value>) -> Result<()> {
    let text: String = rows.map(|row| format!("{row}\n")).collect();
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_has_enough_crates_to_measure_with() {
        let paths = Paths::find().unwrap();
        let split = split::split(corpus::read(&paths).unwrap(), HELD_OUT_PERCENT);
        assert!(split.held_out.len() >= LEAST_QUERIES, "{}", split.held_out.len());
        assert!(split.train.len() + split.held_out.len() >= LEAST_CRATES, "{}", split.train.len());
        let train: std::collections::BTreeSet<&str> = split.train.iter().map(|entry| entry.passage.as_str()).collect();
        assert!(split.held_out.iter().all(|entry| !train.contains(entry.passage.as_str())));
    }
}
