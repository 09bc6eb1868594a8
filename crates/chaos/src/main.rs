//! Trains with real processes under real faults, and counts what was lost from the workers' own logs: see [`args::Args`].
//!
//! The harness is the supervisor, the network, the disks and the auditor. Deliberately not here: anything of Pleach but its gRPC
//! surface; what it says of itself counts only where an independent account agrees.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod args;
mod arm;
mod audit;
mod cluster;
mod disk;
mod feed;
mod history;
mod inject;
mod measure;
mod node;
mod plan;
mod reader;
mod recovery;
mod report;
mod stores;
mod watch;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use pleach_base::SystemClock;
use pleach_base::shutdown::{Shutdown, on_signals};
use pleach_testkit::net::{self, Net};

use args::{Args, StoreKind};
use arm::{Arm, Stage};
use disk::Disk;
use plan::{KINDS, Kind};
use report::Surroundings;
use stores::Stores;
use workload::{BATCH, Workload};

/// Steps of the look at how fast this machine is, and how many of them are not counted.
const LOOK: u64 = 40;
const EPOCHS: u64 = 5;
/// What faults may cost, so that the arm with faults lasts about as long as was asked for.
const RESERVE: f64 = 0.88;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(broken) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(broken) => {
            broken.iter().for_each(|promise| eprintln!("BROKEN: {promise}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Vec<String>> {
    if let Some(args::Command::Recovery(args)) = &args.command {
        return recovery::run(args);
    }
    let (folder, _temporary) = folder(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shutdown = Shutdown::default();
    runtime.block_on(async { on_signals(shutdown.clone()) })?;
    let namespaces = if args.no_namespaces {
        Err("--no-namespaces".to_owned())
    } else {
        net::available().map_err(|e| format!("{e:#}"))
    };
    if let Err(why) = &namespaces {
        eprintln!(
            "no network namespaces ({why}): proxies stand in for the network, before coordinators and store only"
        );
    }
    let disks = Disk::mount("probe", &fresh(&folder.join("probe"))?, 1).is_ok();
    let (kinds, not_possible) = kinds(args, namespaces.is_ok(), disks)?;
    let mut net = namespaces.is_ok().then(Net::new).transpose()?;
    let at = net.as_ref().map_or(std::net::Ipv4Addr::LOCALHOST, Net::gateway);
    let stores = Stores::start(args.store, &folder.join("store"), at.into(), &runtime)?;
    let stage = Stage {
        runtime: &runtime,
        clock: SystemClock::shared(),
        shutdown,
        stores: &stores,
        folder: folder.clone(),
        workers: args.workers,
        etcd: args.etcd,
        disks,
        seed: args.seed,
    };
    let around = Surroundings { namespaces, disks, not_possible };
    let (shape, calm, faulty) = arms(args, &stage, &mut net, &kinds)?;
    let (document, broken) = report::write(args, &around, shape, &calm, &faulty);
    let text = serde_json::to_string_pretty(&document)?;
    println!("{text}");
    if let Some(path) = &args.output {
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(broken)
}

/// A look at the machine's speed, the arm without faults, the arm with faults.
fn arms(args: &Args, stage: &Stage<'_>, net: &mut Option<Net>, kinds: &[Kind]) -> Result<(history::Shape, Arm, Arm)> {
    let lanes = (1..=args.workers).rev().find(|lanes| BATCH.is_multiple_of(u64::from(*lanes))).unwrap_or(1);
    let look = Workload::write(&stage.folder.join("look-data"), args.width, lanes, LOOK, 1)?;
    eprintln!("a look at this machine: {} steps", look.shape.steps);
    let minutes = Duration::from_secs_f64(args.minutes * 60.0);
    let first = fresh_net(net, |net| stage.run("look", &look, net, &[], Duration::ZERO, Duration::from_secs(180)))?;
    let step = step_time(&first).context("the first look shows no steps")?;
    let steps = (minutes.as_secs_f64() * RESERVE / step.as_secs_f64()).ceil() as u64;
    eprintln!("a step takes {} ms: {steps} steps", step.as_millis());
    let work = Workload::write(&stage.folder.join("data"), args.width, lanes, steps.max(4 * EPOCHS), EPOCHS)?;
    let limit = minutes * 3 + Duration::from_secs(180);
    eprintln!("the arm without faults: {} steps", work.shape.steps);
    let calm = fresh_net(net, |net| stage.run("calm", &work, net, &[], step, limit))?;
    let faults = plan::draw(args.seed, minutes.mul_f64(1.5), kinds);
    eprintln!("the arm with faults: {:.1} s without them", calm.seconds);
    let step = Duration::from_secs_f64(calm.seconds / work.shape.steps as f64);
    let faulty = fresh_net(net, |net| stage.run("faulty", &work, net, &faults, step, limit))?;
    Ok((work.shape, calm, faulty))
}

/// Each arm has new namespaces in the same network.
fn fresh_net(net: &mut Option<Net>, run: impl FnOnce(Option<&mut Net>) -> Result<Arm>) -> Result<Arm> {
    let arm = run(net.as_mut());
    if let Some(net) = net {
        net.clear();
    }
    arm
}

/// Median time of a step, the first ones not counted.
fn step_time(arm: &Arm) -> Option<Duration> {
    let begun: Vec<Duration> = arm.timeline.begun.values().copied().collect();
    let times = begun.windows(2).skip(5).map(|pair| pair[1].saturating_sub(pair[0]).as_secs_f64());
    measure::quantiles(times.collect()).0.map(Duration::from_secs_f64)
}

/// What can go wrong here, and what cannot.
fn kinds(args: &Args, namespaces: bool, disks: bool) -> Result<(Vec<Kind>, Vec<&'static str>)> {
    if let Some(unknown) = args.only.iter().find(|only| !KINDS.iter().any(|(_, name)| name == only)) {
        let known: Vec<&str> = KINDS.iter().map(|(_, name)| *name).collect();
        bail!("--only: there is no kind `{unknown}`; there are {}", known.join(", "));
    }
    let possible = |kind: Kind| match kind {
        // Partition, isolation and delay have a proxy to fall back to.
        Kind::Loss | Kind::SlowLink | Kind::LeaderCut => namespaces,
        Kind::EtcdKill => args.etcd,
        Kind::S3Errors | Kind::S3Slow | Kind::S3Cut => args.store == StoreKind::S3,
        Kind::DiskFull => disks,
        _ => true,
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let (yes, no): (Vec<_>, Vec<_>) =
        KINDS.iter().filter(|(_, name)| wanted(name)).partition(|(kind, _)| possible(*kind));
    Ok((yes.iter().map(|(kind, _)| *kind).collect(), no.iter().map(|(_, name)| *name).collect()))
}

fn folder(args: &Args) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(keep) = &args.keep {
        return Ok((std::path::absolute(fresh(keep)?)?, None));
    }
    let temporary = tempfile::Builder::new().prefix("pleach-chaos-").tempdir()?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}

fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}
