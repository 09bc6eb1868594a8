//! What came out, for programs (`report.json`) and for people (the last lines).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Args;
use super::job::{Metrics, Run};
use super::split::Split;
use crate::paths::Paths;

const RECALL: &str = "recall@1";
const MRR: &str = "mrr";

/// Mean rise of recall@1 over the runs.
pub(super) fn mean_gain(runs: &[Run]) -> f64 {
    mean(runs.iter().map(|run| of(&run.after, RECALL) - of(&run.before, RECALL)))
}

/// Writes `report.json`.
pub(super) fn write(path: &Path, split: &Split, args: &Args, runs: &[Run], seconds: f64) -> Result<()> {
    let report = json!({
        "dataset": {
            "crates": split.train.len() + split.held_out.len(),
            "families": split.families,
            "train_pairs": split.train.len(),
            "heldout_queries": split.held_out.len(),
            "candidates": split.train.len() + split.held_out.len(),
        },
        "workers": args.workers,
        "device": args.device,
        "seconds": seconds,
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
        "mean": {"before": means(runs, |run| &run.before), "after": means(runs, |run| &run.after)},
        "mean_recall_gain": mean_gain(runs),
        "curve": "curve.svg",
    });
    let text = serde_json::to_string_pretty(&report)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn run(run: &Run) -> Value {
    json!({
        "seed": run.seed,
        "before": run.before,
        "after": run.after,
        "losses": run.losses.iter().map(|(step, loss)| json!({"step": step, "loss": loss})).collect::<Vec<_>>(),
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "trainable_params": run.trainable_params,
        "restarts": run.restarts,
        "checkpoint": run.checkpoint,
    })
}

/// The table, where things are, and the summary line.
pub(super) fn print(paths: &Paths, folder: &Path, runs: &[Run], seconds: f64) {
    println!("\n{:>6} {:>20} {:>20} {:>9} {:>9}", "seed", "recall@1", "mrr", "tokens/s", "seconds");
    for run in runs {
        let change = |name| format!("{:.4} -> {:.4}", of(&run.before, name), of(&run.after, name));
        println!(
            "{:>6} {:>20} {:>20} {:>9.0} {:>9.1}",
            run.seed,
            change(RECALL),
            change(MRR),
            run.tokens_per_second,
            run.seconds
        );
    }
    println!("\nreport      {}", paths.show(&folder.join("report.json")));
    println!("curve       {}", paths.show(&folder.join("curve.svg")));
    for run in runs {
        println!("checkpoint  {}", paths.show(Path::new(&run.checkpoint)));
    }
    let (before, after) = (means(runs, |run| &run.before), means(runs, |run| &run.after));
    println!(
        "quickstart: recall@1 {:.3} -> {:.3}, MRR {:.3} -> {:.3} on held-out crates (mean of {} seeds) in {seconds:.0} s",
        of(&before, RECALL),
        of(&after, RECALL),
        of(&before, MRR),
        of(&after, MRR),
        runs.len()
    );
}

fn of(metrics: &Metrics, name: &str) -> f64 {
    metrics.get(name).copied().unwrap_or(f64::NAN)
}

fn means(runs: &[Run], part: impl Fn(&Run) -> &Metrics) -> Metrics {
    [RECALL, MRR].map(|name| (name.to_owned(), mean(runs.iter().map(|run| of(part(run), name))))).into()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
