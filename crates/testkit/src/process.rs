//! Real processes for tests: started in a group of their own, their lines captured, signalled, and always killed.
//!
//! Plain threads, no runtime: usable from synchronous and (through `spawn_blocking`) asynchronous tests.
//! Deliberately not here: what the processes are. Tests say which binary and which arguments.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pleach_base::{SharedClock, SystemClock};
use regex::Regex;

/// Between two looks at a process that may have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The binary `name` that was built beside the running test: in `target/<profile>/`.
///
/// # Errors
/// When it is not there; the message says how to build it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test?")?;
    let mut folder = test.parent().unwrap_or(Path::new("."));
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not there: build it first, with the same profile (`cargo build`)", path.display());
    Ok(path)
}

/// A TCP port that nobody listened on a moment ago.
///
/// # Errors
/// When the loopback interface gives no port.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A folder that is removed with the returned value.
///
/// # Errors
/// When the system's folder for temporary files is not writable.
pub fn temp_dir() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("pleach-test-").tempdir()?)
}

/// A line that a process wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whether it came from the standard error.
    pub is_stderr: bool,
    /// Without the end of line; what is not UTF-8 is replaced.
    pub text: String,
}

#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    open: usize,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    grew: Condvar,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process under test. Dropping it kills it and all that it started in its group.
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    log: Arc<Log>,
    clock: SharedClock,
    status: Option<ExitStatus>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Process {
    /// Starts `command`; `name` is for messages. Its input is empty; both outputs are captured.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: impl Into<String>, mut command: Command) -> Result<Self> {
        let name = name.into();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        let log = Arc::new(Log::default());
        log.lock().open = 2;
        read(child.stdout.take().context("no output")?, false, Arc::clone(&log));
        read(child.stderr.take().context("no error output")?, true, Arc::clone(&log));
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id is small")?);
        Ok(Self { name, child, group, log, clock: SystemClock::shared(), status: None })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every line so far, in the order of arrival.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.log.lock().all.clone()
    }

    /// All lines so far as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines().iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line, past or future, in which `pattern` (a regular expression) matches.
    ///
    /// # Errors
    /// When `limit` passes or the process closes its outputs without one; the message carries the last lines.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String> {
        Ok(self.wait_for_after(0, pattern, limit)?.1)
    }

    /// As [`Process::wait_for`], among the lines with number `from` and later. Returns the number after the line found,
    /// to go on from, and the line.
    ///
    /// # Errors
    /// As [`Process::wait_for`].
    pub fn wait_for_after(&self, from: usize, pattern: &str, limit: Duration) -> Result<(usize, String)> {
        let wanted = Regex::new(pattern).with_context(|| format!("the pattern {pattern}"))?;
        let deadline = self.clock.elapsed() + limit;
        let mut seen = from;
        let mut lines = self.log.lock();
        loop {
            for (index, line) in lines.all.iter().enumerate().skip(seen) {
                if wanted.is_match(&line.text) {
                    return Ok((index + 1, line.text.clone()));
                }
            }
            seen = seen.max(lines.all.len());
            let left = deadline.saturating_sub(self.clock.elapsed());
            if left.is_zero() || lines.open == 0 {
                let why = if lines.open == 0 { "it closed its outputs" } else { "time is up" };
                drop(lines);
                bail!("{}: no line with `{pattern}` in {limit:?} ({why}); last lines:\n{}", self.name, self.tail());
            }
            lines = self.log.grew.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal to the process and its group.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(self.status.is_none(), "{} has ended: {:?}", self.name, self.status);
        killpg(self.group, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When the process has ended.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Stops it without its noticing (SIGSTOP).
    ///
    /// # Errors
    /// When the process has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When the process had ended before.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for its end, and for its last lines.
    ///
    /// # Errors
    /// When `limit` passes first; the message carries the last lines.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = self.clock.elapsed() + limit;
        loop {
            if let Some(status) = self.exit_status()? {
                self.wait_for_outputs(deadline);
                return Ok(status);
            }
            if self.clock.elapsed() >= deadline {
                bail!("{}: still runs after {limit:?}; last lines:\n{}", self.name, self.tail());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Grandchildren may hold the outputs open, so this waits only until `deadline`.
    fn wait_for_outputs(&self, deadline: Duration) {
        let mut lines = self.log.lock();
        while lines.open > 0 {
            let left = deadline.saturating_sub(self.clock.elapsed());
            if left.is_zero() {
                return;
            }
            lines = self.log.grew.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn tail(&self) -> String {
        let lines = self.lines();
        let last = lines.iter().skip(lines.len().saturating_sub(30));
        last.map(|line| format!("  {}", line.text)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group may hold processes although its leader has ended. SIGKILL ends stopped ones too.
        let _ = killpg(self.group, Signal::SIGKILL);
        if self.status.is_none() {
            let _ = self.child.wait();
        }
    }
}

fn read(from: impl Read + Send + 'static, is_stderr: bool, log: Arc<Log>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            log.lock().all.push(Line { is_stderr, text });
            log.grew.notify_all();
            bytes.clear();
        }
        log.lock().open -= 1;
        log.grew.notify_all();
    });
}
