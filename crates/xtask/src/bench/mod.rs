//! `cargo xtask bench [NAME...]`: measures Pleach on this machine, trainings against PEFT. Each measurement writes
//! `docs/bench/NAME.json`, trainings a plot beside it, and then `docs/performance.md` is written anew from all of them.

mod ckpt;
mod control;
mod machine;
mod page;
mod training;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::paths::Paths;
use crate::setup::{self, View};
use crate::{cmd, gpu, test, ui};
use training::workload;

/// `bench` on the command line.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// What to measure: trainings beside PEFT (w1, w1-bf16, w2, w3; on a GPU w5, w6), ckpt (checkpoints after every step), control
    /// (one coordinator with thousands of workers); everything that this machine can when absent
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How often each way of training is run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Steps of each run
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(4..))]
    steps: u32,
    /// Tiny models and no record: a rehearsal of every part, on the CPU
    #[arg(long)]
    tiny: bool,
    /// Folder of `pleach`, `pleach-worker` and `pleach-s3d`, instead of building them optimised
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Only write docs/performance.md, from what was measured before
    #[arg(long)]
    page: bool,
    /// Goes to `control`, if it alone is named; `-- --help` says what it understands
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The arguments of `cargo xtask gpu`.
pub(crate) fn on_gpu(names: &[&str], tiny: bool) -> Args {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let runs = if tiny { 1 } else { 5 };
    Args { names, runs, steps: 20, tiny, programs: None, page: false, rest: Vec::new() }
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    if !args.page {
        for name in chosen(args, !gpu::gpus().is_empty())? {
            measure(paths, args, name)?;
        }
    }
    if args.tiny { Ok(()) } else { page::write(paths) }
}

fn measure(paths: &Paths, args: &Args, name: &str) -> Result<()> {
    let folder = paths.root.join(page::FOLDER);
    if let Some(workload) = workload::find(name) {
        ui::say(name, workload.what);
        let report = training::measure(paths, args, workload)?;
        for found in &report.figures {
            ui::say(name, page::sentence(*found));
        }
        keep(args, &folder, name, &report)?;
        return if args.tiny { Ok(()) } else { training::draw(&folder.join(format!("{name}.svg")), &report) };
    }
    match name {
        "ckpt" => {
            ui::say(name, "a durable checkpoint after every step");
            let report = ckpt::measure(paths, args)?;
            ui::say(name, format!("stall {:.2} %, slowdown {:.1} %", report.stall * 100.0, report.slowdown * 100.0));
            keep(args, &folder, name, &report)
        }
        _ => {
            ui::say(name, "one coordinator with thousands of simulated workers");
            control::run(paths, &args.rest)
        }
    }
}

fn keep(args: &Args, folder: &std::path::Path, name: &str, report: &impl Serialize) -> Result<()> {
    if args.tiny {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(report)?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Names of all measurements.
fn all() -> impl Iterator<Item = &'static str> {
    workload::ALL.iter().map(|workload| workload.name).chain(["ckpt", "control"])
}

fn chosen(args: &Args, gpu: bool) -> Result<Vec<&'static str>> {
    if !args.rest.is_empty() && (args.names.len() != 1 || args.names[0] != "control") {
        bail!("options after `--` go to `control`: name it alone");
    }
    let fits = |name: &&str| gpu || args.tiny || workload::find(name).is_none_or(|workload| !workload.needs_gpu);
    if args.names.is_empty() {
        // A coordinator with ten thousand workers is no smaller in a rehearsal.
        return Ok(all().filter(fits).filter(|name| !args.tiny || *name != "control").collect());
    }
    let find = |name: &String| {
        let Some(found) = all().find(|known| known == name) else {
            bail!("`{name}` is no measurement; there are: {}", all().collect::<Vec<_>>().join(", "));
        };
        if !fits(&found) {
            bail!("{name} needs a GPU, and `nvidia-smi` lists none; with --tiny it is rehearsed on the CPU");
        }
        Ok(found)
    };
    args.names.iter().map(find).collect()
}

/// The folder of the programs that are measured, built as they are released; of a rehearsal, as they are tested.
fn programs(paths: &Paths, args: &Args, device: &str) -> Result<PathBuf> {
    if let Some(folder) = &args.programs {
        return folder.canonicalize().with_context(|| format!("there is no {}", folder.display()));
    }
    if args.tiny {
        test::build_programs(paths)?;
        return Ok(paths.target().join("debug"));
    }
    ui::say("building", "pleach, pleach-worker and pleach-s3d, optimised");
    let on_gpu = device != "cpu";
    if on_gpu {
        setup::ensure_view(paths, View::Cuda)?;
    }
    let cargo = || if on_gpu { gpu::cargo(paths) } else { cmd::cargo(paths) };
    let worker = ["build", "--quiet", "--release", "--bins", "-p", "pleach-worker"];
    // Each by itself: features of the one are not the other's.
    cmd::run(cargo().args(worker).args(on_gpu.then_some(["--features", "cuda"]).iter().flatten()))?;
    for package in ["pleach-cli", "pleach-testkit"] {
        cmd::run(cargo().args(["build", "--quiet", "--release", "--bins", "-p", package]))?;
    }
    Ok(if on_gpu { gpu::target(paths) } else { paths.target() }.join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], gpu: bool, tiny: bool, rest: &[&str]) -> Result<Vec<&'static str>> {
        let rest = rest.iter().map(|word| (*word).to_owned()).collect();
        chosen(&Args { rest, ..on_gpu(names, tiny) }, gpu)
    }

    #[test]
    fn measurements_are_found_by_name_and_fit_the_machine() {
        assert_eq!(names(&[], false, false, &[]).unwrap(), ["w1", "w1-bf16", "w2", "w3", "ckpt", "control"]);
        assert_eq!(names(&[], true, false, &[]).unwrap().len(), 8);
        assert_eq!(names(&["w6"], false, true, &[]).unwrap(), ["w6"]);
        assert!(names(&["w6"], false, false, &[]).unwrap_err().to_string().contains("needs a GPU"));
        assert!(names(&["w4"], false, false, &[]).unwrap_err().to_string().contains("`w4` is no measurement"));
    }

    #[test]
    fn options_after_dashes_go_to_control_alone() {
        assert_eq!(names(&["control"], false, false, &["--workers", "10"]).unwrap(), ["control"]);
        assert!(names(&["w1"], false, false, &["--workers", "10"]).is_err());
        assert!(names(&[], false, false, &["--workers", "10"]).is_err());
    }
}
