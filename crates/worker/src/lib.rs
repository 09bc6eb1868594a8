//! The worker process: registers with the coordinator that leads, holds a lease by a session, gets ready and trains on its
//! own thread what it is told to, reports, and drains when asked.
//!
//! The network side runs on tokio, training on one plain thread (module `gang`); between them are only channels, counters
//! and a [`pleach_train::StopSignal`]. Two more plain threads do not depend on either: one answers peers (`pulse`), one
//! looks whether training waits in vain (`watchdog`). Deliberately not here: what a step is (`train`), who trains what (the
//! coordinator), object keys (`store`), what is done with adapter folders (`methods::files`; [`commands`] only takes the
//! arguments).

mod bridge;
pub mod cli;
pub mod commands;
mod convert;
mod coordinators;
mod crew;
mod fault;
mod gang;
mod heart;
mod identity;
mod order;
mod pulse;
mod reporter;
mod session;
mod telemetry;
mod times;
mod verdict;
mod watchdog;
mod watched;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;
use pleach_base::{Result, ResultExt as _, code};

pub use worker::run;

/// Parses the command line, runs the worker until it is asked to stop (or the subcommand), and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    pleach_nn::keep_memory();
    let cli = cli::Cli::parse();
    telemetry::start(cli.worker.log_format);
    if let Some(command) = cli.command {
        return commands::run(command);
    }
    match start(cli.worker) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(code = error.code().id, hint = error.hint_text(), "{}", error.chain());
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn start(args: cli::Args) -> Result<()> {
    pleach_comm::check_libtorch()?;
    let before = pleach_train::resident_bytes();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_code(code::IO, || "cannot start the network threads".to_owned())?;
    runtime.block_on(async {
        let shutdown = pleach_base::shutdown::Shutdown::default();
        pleach_base::shutdown::on_signals(shutdown.clone())
            .or_code(code::IO, || "cannot install signal handlers".to_owned())?;
        run(args, shutdown).await
    })?;
    // What `pleach plan` foretells: the most that was needed beside the program and its libraries.
    let peak = pleach_train::peak_bytes().saturating_sub(before);
    tracing::info!(bytes = peak, "peak memory {}", pleach_base::human::bytes(peak));
    Ok(())
}
