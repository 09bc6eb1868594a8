//! Developer commands: `cargo xtask setup | quickstart | test | lint | verify | fix | gen | new-method | mutate | chaos |
//! recovery | papers | bench | gpu`.
//!
//! Deliberately absent: libtorch, protoc and every crate of Pleach, so that this builds on a bare machine and can fetch what
//! the others need. It drives Pleach only as a user would: through `cargo` and the built binaries.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]
#![allow(clippy::disallowed_methods, reason = "durations are shown to people; nothing is decided by them")]

mod arrows;
mod bench;
mod chaos;
mod cmd;
mod generate;
mod gpu;
mod interop;
mod lint;
mod mutate;
mod new_method;
mod papers;
mod paths;
mod quickstart;
mod recovery;
mod setup;
mod strict_table;
mod suites;
mod test;
mod tidy;
mod torch_free;
mod ui;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use paths::Paths;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Pleach", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch libtorch and protox once, and link them under .pleach/
    Setup(setup::Args),
    /// Train a LoRA adapter on real text with two workers, and show what it gained
    Quickstart(quickstart::Args),
    /// Build everything and run every suite
    Test(test::Args),
    /// Formatting, clippy, documentation, and the rules of this repository
    Lint,
    /// `test`, then `lint`; writes nothing to the sources
    Verify,
    /// Format, and apply what clippy suggests
    Fix,
    /// Write the pages that follow from the methods' cards
    Gen(generate::Args),
    /// Begin a new adapter method: one file and one line
    NewMethod(new_method::Args),
    /// Train one job with every number of workers and through failures, and print the hashes of its adapter
    StrictTable,
    /// Train with real processes under real faults, and count what was lost
    Chaos(chaos::Args),
    /// Measure on this machine how long failures of workers and coordinators hold training up
    Recovery(recovery::Args),
    /// Train what the papers claim on small models, and write docs/papers/
    Papers(papers::Args),
    /// Measure Pleach on this machine, trainings beside PEFT: docs/bench/, docs/performance.md
    Bench(bench::Args),
    /// Break each invariant on purpose, in a copy, and see the tests notice
    Mutate(mutate::Args),
    /// Everything that needs a CUDA device
    Gpu(gpu::Args),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let paths = Paths::find()?;
    if let Command::Setup(args) = command {
        return setup::run(&paths, args);
    }
    setup::ensure(&paths)?;
    match command {
        Command::Setup(_) => Ok(()),
        Command::Quickstart(args) => quickstart::run(&paths, args),
        Command::Test(args) => test::run(&paths, args),
        Command::Lint => lint::run(&paths),
        Command::Verify => {
            test::run(&paths, &test::Args::default())?;
            lint::run(&paths)
        }
        Command::Fix => lint::fix(&paths),
        Command::Gen(args) => generate::run(&paths, args),
        Command::NewMethod(args) => new_method::run(&paths, args),
        Command::StrictTable => strict_table::run(&paths),
        Command::Chaos(args) => chaos::run(&paths, args),
        Command::Recovery(args) => recovery::run(&paths, args),
        Command::Papers(args) => papers::run(&paths, args),
        Command::Bench(args) => bench::run(&paths, args),
        Command::Mutate(args) => mutate::run(&paths, args),
        Command::Gpu(args) => gpu::run(&paths, args),
    }
}
