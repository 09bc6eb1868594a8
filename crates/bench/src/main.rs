//! `pleach-bench`: see [`Args`].

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pleach_bench::control::{self, Plan, Report, State};
use pleach_bench::goals::{Goal, goals};
use serde::Serialize;

/// Between a change and the measurement that follows it.
const REST: Duration = Duration::from_secs(3);

/// Measures one coordinator with many simulated workers
#[derive(Parser)]
#[command(name = "pleach-bench")]
struct Args {
    /// Workers, each with a connection of its own, that beat once a second
    #[arg(long, default_value_t = 10_000)]
    workers: usize,
    /// Jobs, each of one worker that commits one step after the other
    #[arg(long, default_value_t = 200)]
    jobs: usize,
    /// Seconds of each of the two measurements: heartbeats alone, and commits beside them
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Where the coordinator keeps its state: a file of redb, or an etcd of one member that is started for it; one after the
    /// other
    #[arg(long, value_enum, default_values_t = [State::Redb, State::Etcd])]
    state: Vec<State>,
    /// The program `pleach`; the one beside this program when absent
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where the numbers go as JSON
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A measurement as it is written.
#[derive(Serialize)]
struct Written {
    #[serde(flatten)]
    report: Report,
    goals: Vec<Goal>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let Args { workers, jobs, seconds, state, program, output } = args;
    let program = match program {
        Some(program) => program,
        None => pleach_testkit::process::binary("pleach")?,
    };
    let mut reports = Vec::new();
    for state in state {
        let (each, program) = (Duration::from_secs(seconds), program.clone());
        let report =
            control::run(&Plan { workers, jobs, each, rest: REST, state, program }, &|what| eprintln!("{what}"))?;
        let goals = goals(&report);
        println!("{report}");
        goals.iter().for_each(|goal| println!("{goal}"));
        reports.push(Written { report, goals });
    }
    if let Some(path) = output {
        let text = serde_json::to_string_pretty(&reports)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        std::fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
