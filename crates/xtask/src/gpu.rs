//! `cargo xtask gpu`: everything that needs a CUDA device, in one command.
//!
//! The CUDA build has a target folder of its own, so that it and the CPU build do not drive each other out.

use std::process::Command;

use anyhow::Result;

use crate::paths::Paths;
use crate::setup::{self, View};
use crate::{bench, cmd, quickstart, ui};

/// `gpu` on the command line.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// Only check that everything compiles with CUDA, even if there is a GPU
    #[arg(long)]
    compile_only: bool,
    /// Without a GPU, run its benchmarks on the CPU with tiny models
    #[arg(long)]
    rehearse: bool,
}

/// The benchmarks that need a GPU.
const WORKLOADS: &[&str] = &["w5", "w6"];

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    let libtorch = setup::ensure_view(paths, View::Cuda)?;
    ui::say("cuda", libtorch.describe());
    let gpus = if args.compile_only { Vec::new() } else { gpus() };
    if gpus.is_empty() {
        cmd::run(cargo(paths).args(["check", "-p", "pleach-worker", "--features", "cuda"]))?;
        ui::say("gpu", "no GPU was used: the code compiles with CUDA, and nothing more was checked");
        if args.rehearse {
            bench::run(paths, &bench::on_gpu(WORKLOADS, true))?;
        }
        return Ok(());
    }
    ui::say("gpus", gpus.join(", "));
    cmd::run(cargo(paths).args(["build", "--bins", "-p", "pleach-worker", "--features", "cuda"]))?;
    cmd::run(cargo(paths).args(["build", "--bins", "-p", "pleach-cli"]))?;
    ui::say("comm", "the conformance suite, over NCCL where it can");
    cmd::run(cargo(paths).args(["test", "-p", "pleach-comm", "--features", "cuda"]))?;
    // NCCL takes one process a GPU.
    let workers = u32::try_from(gpus.len()).unwrap_or(1).min(2);
    let args = quickstart::Args {
        seeds: vec![0, 1, 2],
        workers,
        store: None,
        kill_one: false,
        device: "cuda".to_owned(),
        data_only: false,
    };
    quickstart::with_programs(paths, &args, &target(paths).join("debug"))?;
    ui::say("bench", "trainings beside PEFT on this GPU");
    bench::run(paths, &bench::on_gpu(WORKLOADS, false))
}

/// Names of the GPUs, as the driver's tool lists them; empty without one.
pub(crate) fn gpus() -> Vec<String> {
    let Ok(out) = cmd::output(Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"])) else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&out.stdout);
    if out.status.success() { text.lines().map(|line| line.trim().to_owned()).collect() } else { Vec::new() }
}

pub(crate) fn target(paths: &Paths) -> std::path::PathBuf {
    paths.target().join("cuda")
}

/// A cargo that builds with CUDA.
pub(crate) fn cargo(paths: &Paths) -> Command {
    let mut cargo = cmd::cargo(paths);
    cargo.env("LIBTORCH", paths.local(View::Cuda.link_name())).env("CARGO_TARGET_DIR", target(paths));
    cargo.env_remove("LIBTORCH_USE_PYTORCH");
    cargo
}
