//! What the kernel says of a process, and of this machine.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Connections are file numbers: raises the soft limit to the hard one, for this process and those that it starts.
///
/// # Errors
/// When even the hard limit is below `wanted`.
pub(crate) fn raise_files(wanted: usize) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let enough = usize::try_from(hard).unwrap_or(usize::MAX) >= wanted + 200;
    anyhow::ensure!(enough, "{wanted} connections need more open files than {hard}: raise `ulimit -Hn`");
    Ok(())
}

/// CPU seconds that all processes together have used so far.
pub(crate) fn cpu_seconds_of_all() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat cannot be read")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|text| text.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq.
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else { anyhow::bail!("/proc/stat is short") };
    Ok((user + nice + system + irq + softirq) / ticks_per_second()?)
}

fn ticks_per_second() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("the length of a tick is unknown")? as f64)
}

/// CPU seconds that a process has used so far, all threads, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // The name is in parentheses and may hold anything.
    let rest = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("/proc/PID/stat is short");
    Ok((ticks(11)? + ticks(12)?) / ticks_per_second()?)
}

/// A field of `/proc/PID/status` in MiB.
fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/PID/status has no {field}"))? / 1024.0)
}

/// MiB that a process holds now.
pub(crate) fn memory_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS")
}

/// MiB that a process held at most.
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM")
}

/// Cores and their name.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim());
    format!("{cores} cores ({})", name.unwrap_or("unknown"))
}
