//! The `pleach` command: parse, run, exit code. Talks to coordinators over gRPC, embeds one for `train`, reads stores
//! for `pull`.
//!
//! Not here: tensors. This crate never links libtorch; what needs it is handed over to `pleach-worker`.

mod args;
mod audit;
mod client;
mod commands;
mod fail;
mod follow;
mod handover;
mod local;
mod out;
mod view;

use std::process::ExitCode;

use clap::Parser;
use pleach_base::human::wants_colour;
use pleach_base::{ResultExt, code};
use tracing_subscriber::EnvFilter;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = args::Cli::parse();
    log(cli.global.verbose, matches!(cli.command, args::Command::Coordinator(_)));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime
        .or_code(code::INTERNAL, || "cannot start the runtime".into())
        .and_then(|runtime| runtime.block_on(commands::run(cli)));
    result.unwrap_or_else(|error| {
        fail::show(&error);
        ExitCode::from(fail::exit_code(&error))
    })
}

/// Log lines on standard error. A coordinator says what it does; other commands only what worries them.
fn log(verbose: u8, server: bool) {
    let level = match (verbose, server) {
        (0, false) => "warn",
        (0, true) => "info",
        (1, _) => "info,pleach=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("PLEACH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(wants_colour(&std::io::stderr()))
        .with_target(false)
        .compact()
        .init();
}
