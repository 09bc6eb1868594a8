//! One program of the cluster under supervision: started, started again after it ended, its words kept.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use pleach_testkit::net::Host;
use pleach_testkit::process::Process;
use pleach_testkit::proxy::Proxy;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    Coordinator,
    Etcd,
}

/// How it is started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Workers compute as much as they can: whoever watches over them must not wait for them.
    pub(crate) nice: i32,
}

/// A proxy on a worker's way to somebody.
pub(crate) struct Way {
    pub(crate) to_store: bool,
    pub(crate) proxy: Proxy,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) address: Ipv4Addr,
    pub(crate) host: Option<Host>,
    /// Where there are no namespaces: what its ways to the coordinators and to the store lead through.
    pub(crate) ways: Vec<Way>,
    program: Program,
    logs: PathBuf,
    process: Option<Process>,
    /// When it began to run.
    since: Duration,
    /// When it is to be started again.
    again: Option<Duration>,
    pub(crate) starts: u32,
    /// It was ended on purpose; otherwise an end is a finding.
    expected: bool,
    /// A fault is at work on it: no other should be.
    pub(crate) busy_until: Duration,
}

impl Node {
    pub(crate) fn new(name: &str, role: Role, host: Option<Host>, program: Program, folder: &Path) -> Self {
        let address = host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
        Self {
            name: name.to_owned(),
            role,
            address,
            host,
            ways: Vec::new(),
            program,
            logs: folder.join("logs"),
            process: None,
            since: Duration::ZERO,
            again: None,
            starts: 0,
            expected: false,
            busy_until: Duration::ZERO,
        }
    }

    pub(crate) fn start(&mut self, now: Duration) -> Result<()> {
        let nice = self.program.nice.to_string();
        let mut command = match &self.host {
            Some(host) => host.command("nice"),
            None => Command::new("nice"),
        };
        command.args(["-n", &nice]).arg(&self.program.path).args(&self.program.args);
        command.envs(self.program.env.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start(&self.name, command)?);
        (self.since, self.again, self.expected) = (now, None, false);
        self.starts += 1;
        Ok(())
    }

    /// Notes an end, and starts again what is due. Returns what is to be told if it ended by itself.
    pub(crate) fn supervise(&mut self, now: Duration, pause: Duration) -> Result<Option<String>> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.exit_status()?
        {
            let told = (!self.expected).then(|| format!("{} ended by itself ({status})", self.name));
            self.keep_words()?;
            self.process = None;
            self.again = Some(now + pause);
            return Ok(told);
        }
        if self.again.is_some_and(|due| due <= now) {
            self.start(now)?;
        }
        Ok(None)
    }

    fn keep_words(&self) -> Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        fs::create_dir_all(&self.logs)?;
        let path = self.logs.join(format!("{}-{}.log", self.name, self.starts));
        fs::write(&path, process.text()).with_context(|| path.display().to_string())
    }

    /// Whether it runs, and has for a while.
    pub(crate) fn is_up(&self, now: Duration, at_least: Duration) -> bool {
        self.process.is_some() && now >= self.since + at_least
    }

    /// Sends a signal. `ends`: the process is meant to end by it.
    pub(crate) fn signal(&mut self, signal: Signal, ends: bool) -> Result<()> {
        self.expected |= ends;
        self.process.as_ref().with_context(|| format!("{} does not run", self.name))?.signal(signal)
    }

    /// An end of the running process is no surprise.
    pub(crate) fn expect_end(&mut self) {
        self.expected = true;
    }

    /// The value of an argument `--FLAG=VALUE`.
    pub(crate) fn argument(&self, flag: &str) -> Option<&str> {
        self.program.args.iter().find_map(|word| word.strip_prefix(flag)?.strip_prefix('='))
    }

    /// The last lines, for a failed run.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.process.as_ref().map(Process::text).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.keep_words();
    }
}
