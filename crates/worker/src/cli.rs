//! The command line.

use clap::{Parser, ValueEnum};

/// One rank's worth of a machine: joins a coordinator, trains what it is given. With a subcommand: work on folders that
/// needs tensors, usually called as `pleach SUBCOMMAND`.
#[derive(Debug, Parser)]
#[command(name = "pleach-worker", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    /// What a worker is told.
    #[command(flatten)]
    pub worker: Args,
    /// Something else than being a worker.
    #[command(subcommand)]
    pub command: Option<crate::commands::Command>,
}

/// What a worker is told.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Address of the coordinator; of several, separated by commas, the one that leads is found.
    #[arg(long, env = "PLEACH_ADDRESS", default_value = "http://127.0.0.1:7700")]
    pub coordinator: String,
    /// Stable name of this worker; the host name and process id when absent.
    #[arg(long, env = "PLEACH_WORKER_NAME")]
    pub name: Option<String>,
    /// Host or address by which the other workers reach this one, and where it serves the rendezvous.
    #[arg(long, default_value = "127.0.0.1")]
    pub listen_host: String,
    /// Address or interface for collectives; where the rendezvous is reached from when absent.
    #[arg(long)]
    pub comm_bind: Option<String>,
    /// Intra-op threads; all cores when absent. A job's `workers.threads` wins.
    #[arg(long)]
    pub threads: Option<u32>,
    /// `cpu` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// How log lines look on standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Exit after one job.
    #[arg(long)]
    pub once: bool,
    /// Token of the coordinator.
    #[arg(long, env = "PLEACH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// PEM file of the authority that signed the coordinator's certificate.
    #[arg(long, env = "PLEACH_CA")]
    pub ca: Option<std::path::PathBuf>,
    /// Seconds that training goes on without the coordinator before it stops with a checkpoint; what the coordinator
    /// says when absent.
    #[arg(long)]
    pub grace: Option<u64>,
    /// Folder where it is written down, before each step, what the step is fed.
    #[arg(long, value_name = "DIR")]
    pub feed_log: Option<std::path::PathBuf>,
    /// For tests: a file that names a phase of a step and a signal which this process then raises on itself.
    #[arg(long, value_name = "PATH", hide = true)]
    pub fault_file: Option<std::path::PathBuf>,
    /// Process id of a `pleach train` that this worker belongs to: they leave together, and with a checkpoint.
    #[arg(long, value_name = "PID", hide = true)]
    pub crew_of: Option<u32>,
    /// Exchange signatures before every collective, to find ranks that differ.
    #[arg(long)]
    pub checked: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_a_worker_needs_no_subcommand() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["pleach-worker", "--once", "--device", "cpu"]);
        assert!(cli.command.is_none() && cli.worker.once);
    }
}
