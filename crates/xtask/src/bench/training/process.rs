//! A program that is measured from outside: when it began and ended, and the most memory that it and its descendants held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::cmd;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How many looks pass until the next search for new descendants: it reads of every process here.
const LOOKS_A_SEARCH: u32 = 10;
/// How often the GPU is asked: that starts a program.
const LOOK_AT_GPU: Duration = Duration::from_millis(400);
/// Lines of what a program said last that an error shows.
const TAIL: usize = 12;

/// What was seen of a program that ended well.
#[derive(Clone, Debug, Default)]
pub(in crate::bench) struct Ran {
    /// Unix time at which it was started, in seconds.
    pub(in crate::bench) begun: f64,
    /// From then to its end.
    pub(in crate::bench) wall: Duration,
    /// What it printed.
    pub(in crate::bench) stdout: String,
    /// The most resident memory of the program and its descendants together; what they share counts for each.
    pub(in crate::bench) peak_bytes: u64,
    /// The most memory that was in use on the first GPU, where one was watched.
    pub(in crate::bench) gpu_mib: Option<u64>,
}

/// Runs to its end; what it says on standard error goes to `log`.
pub(in crate::bench) fn run(command: &mut Command, log: &Path, gpu: bool) -> Result<Ran> {
    Ok(run_all(std::slice::from_mut(command), log, gpu)?.remove(0))
}

/// Runs several at once. Memory is that of all of them, and is said of each.
pub(in crate::bench) fn run_all(commands: &mut [Command], log: &Path, gpu: bool) -> Result<Vec<Ran>> {
    let clock = Instant::now();
    let mut children = Vec::new();
    for (number, command) in commands.iter_mut().enumerate() {
        let path = log.with_extension(format!("{number}.log"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let (begun, from) = (now(), clock.elapsed());
        let child = command.spawn().with_context(|| format!("cannot run `{}`", cmd::show(command)))?;
        children.push((begun, from, path, child));
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut family = Family::of(children.iter().map(|(.., child)| child.id()));
    let memory = watch(&over, LOOK, move || family.resident());
    let on_gpu = gpu.then(|| watch(&over, LOOK_AT_GPU, gpu_in_use));
    let (mut ran, mut failed) = (Vec::new(), None);
    for ((begun, from, path, child), command) in children.into_iter().zip(commands.iter()) {
        let out = child.wait_with_output()?;
        if !out.status.success() {
            failed.get_or_insert(format!("`{}` failed ({}):\n{}", cmd::show(command), out.status, tail(&path)));
        }
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        ran.push(Ran { begun, wall: clock.elapsed().saturating_sub(from), stdout, ..Ran::default() });
    }
    over.store(true, Ordering::Relaxed);
    let peak_bytes = memory.join().unwrap_or_default();
    let gpu_mib = on_gpu.map(|thread| thread.join().unwrap_or_default());
    if let Some(failed) = failed {
        bail!(failed);
    }
    Ok(ran.into_iter().map(|ran| Ran { peak_bytes, gpu_mib, ..ran }).collect())
}

/// Unix time in seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// The highest of what `look` gives until `over`.
fn watch(over: &Arc<AtomicBool>, every: Duration, mut look: impl FnMut() -> u64 + Send + 'static) -> JoinHandle<u64> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        let mut peak = 0;
        while !over.load(Ordering::Relaxed) {
            peak = look().max(peak);
            thread::sleep(every);
        }
        peak
    })
}

/// Processes and their descendants.
struct Family {
    roots: Vec<u32>,
    members: BTreeSet<u32>,
    looks: u32,
}

impl Family {
    fn of(roots: impl Iterator<Item = u32>) -> Self {
        let roots: Vec<_> = roots.collect();
        Self { members: roots.iter().copied().collect(), roots, looks: 0 }
    }

    /// Bytes that all of them hold now, or the most that one of them has held, if that is more.
    fn resident(&mut self) -> u64 {
        if self.looks.is_multiple_of(LOOKS_A_SEARCH) {
            self.members = descendants(&self.roots, &parents());
        }
        self.looks += 1;
        let (mut sum, mut most) = (0, 0);
        for pid in &self.members {
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            sum += kib(&status, "VmRSS:");
            most = most.max(kib(&status, "VmHWM:"));
        }
        sum.max(most) * 1024
    }
}

fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Every process's parent.
fn parents() -> BTreeMap<u32, u32> {
    let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| {
        // `pid (name) state ppid ...`; the name may hold blanks and brackets.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    ids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

fn descendants(roots: &[u32], parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    let mut found: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

fn gpu_in_use() -> u64 {
    let mut ask = Command::new("nvidia-smi");
    ask.args(["--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]);
    let Ok(out) = cmd::output(&mut ask) else { return 0 };
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_output_and_the_memory_of_descendants_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        // A child of the shell keeps 48 MiB in a variable, long enough to be looked at.
        let script = "( a=$(head -c 50331648 /dev/zero | tr '\\0' x); sleep 0.6; echo ${#a} )";
        let mut command = Command::new("sh");
        let ran = run(command.args(["-c", script]), &folder.path().join("a.log"), false).unwrap();
        assert_eq!(ran.stdout, "50331648\n");
        assert!(ran.wall >= Duration::from_millis(600), "{ran:?}");
        assert!(ran.peak_bytes > 48 << 20, "{ran:?}");
        assert_eq!(ran.gpu_mib, None);
    }

    #[test]
    fn a_failure_shows_what_the_program_said_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo a reason >&2; exit 3"]);
        let error = run(&mut command, &folder.path().join("a.log"), false).unwrap_err().to_string();
        assert!(error.contains("a reason") && error.contains('3'), "{error}");
    }

    #[test]
    fn descendants_are_found_whatever_the_order_of_ids() {
        let parents = [(2, 1), (3, 9), (4, 8), (8, 3), (9, 7)].into();
        assert_eq!(descendants(&[9], &parents), [3, 4, 8, 9].into());
        assert_eq!(kib("VmHWM:\t  1572372 kB\nVmRSS:\t   175064 kB\n", "VmRSS:"), 175_064);
    }
}
