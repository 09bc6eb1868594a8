//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::recovery;

/// Trains a job twice with real processes: first in peace, then under faults drawn from a seed. Prints one JSON document; the
/// exit code is not zero when a promise was broken.
#[derive(Clone, Debug, Parser)]
#[command(name = "pleach-chaos", max_term_width = 100, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Which faults, when, and on whom
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How long the arm with faults should last; the arm without lasts nearly as long
    #[arg(long, default_value_t = 2.0, value_name = "M")]
    pub(crate) minutes: f64,
    /// Worker processes, and lanes of a step
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16))]
    pub(crate) workers: u32,
    /// Three coordinators over three members of etcd; one coordinator with a file when absent
    #[arg(long)]
    pub(crate) etcd: bool,
    /// Where checkpoints go
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    pub(crate) store: StoreKind,
    /// Only these kinds of fault (repeatable); all that this machine allows when absent
    #[arg(long, value_name = "KIND")]
    pub(crate) only: Vec<String>,
    /// Do not make network namespaces, even as root: faults of the network are then those of a proxy
    #[arg(long)]
    pub(crate) no_namespaces: bool,
    /// Write the JSON document here too
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Keep logs, feed logs and the store in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) keep: Option<PathBuf>,
    /// Width of the model's hidden states; raise it where a step takes less than 100 ms
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) width: u32,
    /// Share of the throughput of the arm without faults below which a promise counts as broken
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub(crate) least_throughput: f64,
}

/// What else the harness does.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure how long it takes to go on: after a worker's death, a coordinator's, and when a worker joins
    Recovery(recovery::Args),
}

/// Kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// A real S3 server of the test kit, whose faults are part of the run
    S3,
    /// A folder; no faults of the store then
    Folder,
}
