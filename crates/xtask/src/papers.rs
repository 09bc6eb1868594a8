//! `cargo xtask papers [NN...] [--gpu]`: builds `pleach-papers`, which trains what the papers claim on small models, and has it write
//! `docs/papers/`.

use anyhow::Result;

use crate::paths::Paths;
use crate::setup::{self, View};
use crate::{cmd, gpu, ui};

/// `papers` on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Numbers of pages, all when absent, and what else `pleach-papers --help` lists: --gpu, -o json, --threads N ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    ui::say("building", "pleach-papers");
    let build = ["run", "--quiet", "-p", "pleach-papers"];
    let mut command = if args.rest.iter().any(|word| word == "--gpu") {
        setup::ensure_view(paths, View::Cuda)?;
        let mut command = gpu::cargo(paths);
        command.args(build).args(["--features", "cuda"]);
        command
    } else {
        let mut command = cmd::cargo(paths);
        command.args(build);
        command
    };
    cmd::run(command.arg("--").args(&args.rest))
}
