//! `cargo xtask chaos`: builds the programs as they are shipped, and the harness `pleach-chaos` that trains with them under faults.

use std::path::PathBuf;

use anyhow::Result;

use crate::paths::Paths;
use crate::{cmd, test, ui};

/// `chaos` on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// What `pleach-chaos --help` lists: --seed S --minutes M --workers N --etcd --store s3 ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// What the suite `chaos` of `cargo xtask test` runs: two minutes with every kind of fault that the machine allows.
pub(crate) const SUITE: &[&str] = &["--seed", "1", "--minutes", "2", "--workers", "4", "--store", "s3"];

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    ui::say("building", "pleach, pleach-worker and pleach-chaos");
    test::build_programs(paths)?;
    let rest: Vec<&str> = args.rest.iter().map(String::as_str).collect();
    with_programs(paths, &rest)
}

/// The same with programs that are built already.
pub(crate) fn with_programs(paths: &Paths, args: &[&str]) -> Result<()> {
    let program: PathBuf = paths.target().join("debug/pleach-chaos");
    cmd::run(std::process::Command::new(program).args(args))
}
