//! Work on folders that needs tensors: subcommands of `pleach-worker` that `pleach` hands over to. One file each, which
//! takes arguments and shows results; what is done is in the crates below.

mod compose;
mod diff;
mod export;
mod generate;
mod import;
mod merge;
mod out;
mod parity;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Subcommand;
use pleach_base::{Error, Kind, Result, human};

/// The subcommands, in the order of `--help`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Repeat recorded trainings and compare logits, losses, the first gradient norm and trained tensors
    Parity(parity::Args),
    /// Fold an adapter into its base model: a model folder that transformers opens
    Merge(merge::Merge),
    /// Take an adapter out of a merged model again, where the mathematics allows it
    Unmerge(merge::Unmerge),
    /// Add up sparse differences of several trainings on one model
    Compose(compose::Args),
    /// Write an adapter in a form that others open
    Export(export::Args),
    /// Check an adapter of others against a model, and write it so that a job can start from it
    Import(import::Args),
    /// Compare two adapters or models, tensor by tensor
    Diff(diff::Args),
    /// Let a trained generator write the adapter of a context
    Generate(generate::Args),
}

/// Runs a subcommand: errors are shown, and the exit code is that of the `pleach` command line (1 failed, 2 bad input).
#[must_use]
pub fn run(command: Command) -> ExitCode {
    dispatch(command).unwrap_or_else(|error| {
        let text = human::error(&error, human::wants_colour(&std::io::stderr()));
        let _ = write!(std::io::stderr().lock(), "{text}");
        ExitCode::from(exit_code(&error))
    })
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Parity(args) => parity::run(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Unmerge(args) => merge::unmerge(&args),
        Command::Compose(args) => compose::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Generate(args) => generate::run(&args),
    }
}

/// 2 for bad input, which a file that cannot be read is here, else 1.
fn exit_code(error: &Error) -> u8 {
    match error.kind() {
        Kind::Invalid | Kind::NotFound | Kind::Corrupt => 2,
        _ => 1,
    }
}
