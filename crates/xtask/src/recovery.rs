//! `cargo xtask recovery`: builds the programs as they are shipped, and has `pleach-chaos recovery` measure how long it takes to
//! go on after a death.

use anyhow::Result;

use crate::paths::Paths;
use crate::{chaos, test, ui};

/// `recovery` on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// What `pleach-chaos recovery --help` lists: --trials N --workers N --only SCENARIO --output FILE ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    ui::say("building", "pleach, pleach-worker and pleach-chaos");
    test::build_programs(paths)?;
    let words: Vec<&str> = std::iter::once("recovery").chain(args.rest.iter().map(String::as_str)).collect();
    chaos::with_programs(paths, &words)
}
