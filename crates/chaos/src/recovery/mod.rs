//! How long it takes to go on: real processes on the loopback interface, one failure at a time, many trials.
//!
//! Times are those of an observer outside: what the coordinator streams, what it records, and what the workers write into
//! their feed logs, looked at every few milliseconds.

mod bench;
mod probe;
mod seen;
mod table;
mod trials;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use pleach_base::SystemClock;
use pleach_base::shutdown::{Shutdown, on_signals};

use bench::Bench;
use table::Table;
use trials::Scenario;

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Failures of each kind
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Worker processes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8))]
    workers: u32,
    /// Only these scenarios (repeatable); all when absent
    #[arg(long, value_enum, value_name = "SCENARIO")]
    only: Vec<Scenario>,
    /// Megabytes of adapter and optimiser state that a joining worker gets in the scenario `transfer`
    #[arg(long, default_value_t = 200, value_name = "MB")]
    state_mb: u64,
    /// Write the JSON document here too
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Keep logs and feed logs in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

/// The command. Nothing is promised here: it measures, and fails only when a trial does not recover at all.
pub(crate) fn run(args: &Args) -> Result<Vec<String>> {
    let (folder, _temporary) = folder(args.keep.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shutdown = Shutdown::default();
    runtime.block_on(async { on_signals(shutdown.clone()) })?;
    let mut table = Table::default();
    let all = Scenario::value_variants().iter().copied();
    for scenario in all.filter(|scenario| args.only.is_empty() || args.only.contains(scenario)) {
        let setting = scenario.setting(args.workers, args.state_mb);
        eprintln!("{}: {} trials", scenario.name(), args.trials);
        let folder = folder.join(scenario.name());
        let mut bench = Bench::start(&folder, &setting, &runtime, SystemClock::shared(), shutdown.clone())?;
        for trial in 0..args.trials {
            match scenario.trial(&mut bench, trial) {
                Ok(times) => table.add(scenario, &times),
                Err(error) => {
                    eprintln!("{}", bench.last_words());
                    return Err(error.context(format!("{}, trial {}", scenario.name(), trial + 1)));
                }
            }
            if trial % 10 == 9 {
                eprintln!("  {} trials\n{}", trial + 1, table.text(Some(scenario)));
            }
        }
    }
    let text = serde_json::to_string_pretty(&table.document(args.trials, args.workers))?;
    eprintln!("{}", table.text(None));
    println!("{text}");
    if let Some(path) = &args.output {
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(Vec::new())
}

fn folder(keep: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(keep) = keep else {
        let temporary = tempfile::Builder::new().prefix("pleach-recovery-").tempdir()?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    if keep.exists() {
        bail!("{} is there already", keep.display());
    }
    std::fs::create_dir_all(keep)?;
    Ok((std::path::absolute(keep)?, None))
}
