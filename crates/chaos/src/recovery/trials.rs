//! The scenarios: one failure each, and the times of what follows.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::bench::{Bench, Setting, rank_for};
use super::probe::Word;
use crate::feed::Fence;
use crate::node::Role;

/// Names and values of one trial.
pub(super) type Times = Vec<(&'static str, Duration)>;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Scenario {
    /// A worker is killed; then a new process takes its place
    Worker,
    /// The same with two workers and a large state, which the joining worker gets from its peer
    Transfer,
    /// The leading coordinator of three is killed; their state is in etcd
    Coordinator,
    /// The leading coordinator and the leading member of etcd are killed together
    CoordinatorAndEtcd,
}

impl Scenario {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Transfer => "transfer",
            Self::Coordinator => "coordinator",
            Self::CoordinatorAndEtcd => "coordinator-and-etcd",
        }
    }

    pub(super) fn setting(self, workers: u32, state_mb: u64) -> Setting {
        match self {
            Self::Worker => Setting { workers, etcd: false, rank: 8, strict: true },
            Self::Transfer => Setting { workers: 2, etcd: false, rank: rank_for(state_mb), strict: false },
            Self::Coordinator | Self::CoordinatorAndEtcd => Setting { workers: 2, etcd: true, rank: 8, strict: true },
        }
    }

    pub(super) fn trial(self, bench: &mut Bench, trial: u32) -> Result<Times> {
        match self {
            Self::Worker | Self::Transfer => worker(bench, trial),
            Self::Coordinator => coordinator(bench, false),
            Self::CoordinatorAndEtcd => coordinator(bench, true),
        }
    }
}

fn worker(bench: &mut Bench, trial: u32) -> Result<Times> {
    let before = bench.steady()?;
    let workers = bench.cluster.of(Role::Worker);
    let victim = workers[trial as usize % workers.len()];
    let killed = bench.kill(victim)?;
    let (fence, ready, first) = going_on(bench, before, killed, workers.len() - 1)?;
    let detected = noticed(bench, killed).unwrap_or(ready);
    let assigned = assigned(bench, fence, killed).unwrap_or(detected);
    let mut times =
        Times::from_iter(bench.step_time(before).map(|step| ("a step before the failure, for comparison", step)));
    times.extend([
        ("detection: kill to the coordinator's word", detected.saturating_sub(killed)),
        ("re-forming: assignment to all ranks ready", ready.saturating_sub(assigned)),
        ("kill to all ranks ready", ready.saturating_sub(killed)),
        ("first step: kill to the next step recorded", first.saturating_sub(killed)),
    ]);
    let name = bench.cluster.nodes[victim].name.clone();
    let started = bench.restart(victim)?;
    let (joined, ready, first) = going_on(bench, fence, started, workers.len())?;
    let told = |word: &Word| matches!(word, Word::Event { kind, worker } if kind == "Prepared" && *worker == name);
    let prepared =
        bench.until("word that the new worker is prepared", |bench| bench.probe.log().word_after(started, told))?;
    times.push(("join: prepared to the first step with it recorded", first.saturating_sub(prepared)));
    if let Some(assigned) = self::assigned(bench, joined, started) {
        times.push(("state transfer: assignment to all ranks ready", ready.saturating_sub(assigned)));
    }
    Ok(times)
}

/// Waits for a generation of `world` members after `before`, and for the first step that it makes. Returns its fence, when all
/// were ready, and when the step was recorded.
fn going_on(bench: &mut Bench, before: Fence, from: Duration, world: usize) -> Result<(Fence, Duration, Duration)> {
    let (fence, ready, step) = bench.until("the next generation", |bench| bench.seen.formed(before, world))?;
    let made = bench.until("its first step", |bench| {
        let log = bench.probe.log();
        log.recorded_after(from, |seen| seen.generation == fence.1 && seen.step > step)
    })?;
    Ok((fence, ready, made.at))
}

/// The first thing that the coordinator said about the failure.
fn noticed(bench: &Bench, killed: Duration) -> Option<Duration> {
    let idle = ["Checkpoint", "Prepared", "Running"];
    bench.probe.log().word_after(killed, |word| match word {
        Word::Event { kind, .. } => !idle.contains(&kind.as_str()),
        Word::Generation(_) => false,
    })
}

/// When a generation was handed out.
fn assigned(bench: &Bench, fence: Fence, from: Duration) -> Option<Duration> {
    bench.probe.log().word_after(from, |word| matches!(word, Word::Generation(of) if *of == fence.1))
}

fn coordinator(bench: &mut Bench, with_etcd: bool) -> Result<Times> {
    let before = bench.steady()?;
    let (endpoint, node) = bench.leader()?;
    let member = if with_etcd { Some(bench.etcd_leader()?) } else { None };
    let step = bench.probe.log().step();
    let killed = bench.kill(node)?;
    if let Some(member) = member {
        bench.kill(member)?;
    }
    let answered = bench
        .until("a new leader", |bench| bench.probe.log().recorded_after(killed, |seen| seen.leader != endpoint))?;
    let recorded = bench.until("the first step recorded by the new leader", |bench| {
        bench.probe.log().recorded_after(killed, |seen| seen.leader != endpoint && seen.step > step)
    })?;
    let mut times = vec![
        ("fail-over: kill to the first answer of the new leader", answered.at.saturating_sub(killed)),
        ("fail-over: kill to the first step recorded by the new leader", recorded.at.saturating_sub(killed)),
    ];
    // How long training itself stood still: the longest time between two steps since.
    let fed: Vec<Duration> = bench.seen.generations.values().flat_map(|of| of.fed.values().copied()).collect();
    let mut around: Vec<Duration> = fed.into_iter().filter(|at| *at + Duration::from_secs(5) > killed).collect();
    around.sort_unstable();
    let still = around.windows(2).filter(|pair| pair[1] > killed).map(|pair| pair[1].saturating_sub(pair[0])).max();
    times.extend(still.map(|still| ("training stood still for at most", still)));
    bench.restart(node)?;
    if let Some(member) = member {
        bench.restart(member)?;
    }
    let after = bench.steady()?;
    if after != before {
        times.push(("a generation had to be formed anew", Duration::ZERO));
    }
    // Those that were started again become followers, and a quorum, before the next one dies.
    std::thread::sleep(Duration::from_secs(3));
    Ok(times)
}
