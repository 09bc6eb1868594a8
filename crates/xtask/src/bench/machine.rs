//! What is measured on, and what else it was busy with.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use super::Args;
use crate::cmd;
use crate::paths::Paths;

/// A machine in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: u32,
    pub(super) memory_gib: u64,
    pub(super) kernel: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) gpus: Vec<String>,
}

impl Machine {
    pub(super) fn here(gpus: Vec<String>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: u64 = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cores(),
            memory_gib: kib.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            gpus,
        }
    }
}

/// When, of what and on what a measurement was taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) date: String,
    pub(super) commit: String,
    pub(super) machine: Machine,
    /// Share of the cores that other programs took meanwhile.
    pub(super) others: f64,
    pub(super) rounds: u32,
    pub(super) steps: u32,
}

impl Taken {
    /// Of a measurement that has just ended.
    pub(super) fn now(paths: &Paths, args: &Args, name: &str, gpus: Vec<String>, others: &Others) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            date: today(),
            commit: commit(paths)?,
            machine: Machine::here(gpus),
            others: others.share(),
            rounds: args.runs,
            steps: args.steps,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, cores, memory_gib, kernel, gpus } = self;
        write!(f, "{cpu}, {cores} cores, {memory_gib} GiB of memory, Linux {kernel}")?;
        gpus.iter().try_for_each(|gpu| write!(f, ", {gpu}"))
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
}

/// The commit that is checked out, with a `+` when files differ from it.
fn commit(paths: &Paths) -> Result<String> {
    let git = |words: &[&str]| -> Result<String> {
        let out = cmd::output(Command::new("git").current_dir(&paths.root).args(words))?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates", "Cargo.lock"])?;
    Ok(git(&["rev-parse", "--short=10", "HEAD"])? + if changed.is_empty() { "" } else { "+" })
}

/// Today, UTC.
fn today() -> String {
    let out = cmd::output(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
}

/// Tells how busy others keep the machine while we measure.
pub(super) struct Others {
    begun: Instant,
    busy: f64,
    own: f64,
}

impl Others {
    pub(super) fn watch() -> Self {
        Self { begun: Instant::now(), busy: busy_seconds(&stat()), own: own_seconds() }
    }

    /// The share of the machine's cores that programs other than ours and those that we ran took since then.
    pub(super) fn share(&self) -> f64 {
        let others = busy_seconds(&stat()) - self.busy - (own_seconds() - self.own);
        let all = self.begun.elapsed().as_secs_f64() * f64::from(processors(&stat()).max(1));
        (others / all).clamp(0.0, 1.0)
    }
}

fn stat() -> String {
    fs::read_to_string("/proc/stat").unwrap_or_default()
}

/// Seconds in which cores did something, over all of them: user, nice, system, irq, softirq and steal, in hundredths.
fn busy_seconds(stat: &str) -> f64 {
    let line = stat.lines().find(|line| line.starts_with("cpu ")).unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).map(|ticks| ticks.parse::<f64>().unwrap_or(0.0));
    ticks.enumerate().filter(|(column, _)| matches!(column, 0..=2 | 5..=7)).map(|(_, ticks)| ticks).sum::<f64>() / 100.0
}

fn processors(stat: &str) -> u32 {
    let lines = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    u32::try_from(lines.count()).unwrap_or(1)
}

/// Of this process and of those that it has waited for.
fn own_seconds() -> f64 {
    let of = |who| {
        getrusage(who).map_or(0.0, |usage| {
            (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
        })
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_waiting_is_not_busy() {
        let stat = "cpu  100 20 30 9000 500 4 6 40 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n";
        assert_eq!(busy_seconds(stat), 2.0);
        assert_eq!(processors(stat), 2);
    }

    #[test]
    fn what_we_ran_is_not_others() {
        let before = own_seconds();
        let script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        assert!(own_seconds() > before);
    }
}
