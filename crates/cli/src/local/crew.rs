//! All worker processes of a job. A dead one is started anew (a new incarnation) while restarts are left.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pleach_base::{Error, Result, code};
use tokio::process::Command;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::child::Process;

/// A worker that was asked to drain may finish a step and write a checkpoint first.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// Waits between a death and the next start: doubled by each death of the same worker.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What every worker process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Recruit {
    pub(crate) binary: PathBuf,
    /// Address of the coordinator.
    pub(crate) address: String,
    /// Intra-op threads of each.
    pub(crate) threads: u32,
    /// `cpu`, `cuda:N`, or `cuda` for one GPU each.
    pub(crate) device: String,
    /// Pass on all that they write.
    pub(crate) verbose: bool,
}

impl Recruit {
    fn command(&self, index: u32) -> Command {
        let mut command = Command::new(&self.binary);
        let device = if self.device == "cuda" { format!("cuda:{index}") } else { self.device.clone() };
        command.args(["--coordinator", &self.address, "--name", &name(index), "--device", &device]);
        command.args(["--threads", &self.threads.to_string()]);
        // Killed outright, this process drains nobody: workers look whether it is still there.
        command.args(["--crew-of", &std::process::id().to_string()]);
        if std::env::var_os("PLEACH_LOG").is_none() {
            command.env("PLEACH_LOG", if self.verbose { "info" } else { "warn" });
        }
        command
    }
}

fn name(index: u32) -> String {
    format!("worker-{index}")
}

/// What the crew is told while it works.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    /// Ask the workers to finish their step, write a checkpoint and end.
    pub(crate) drain: CancellationToken,
}

/// Worker processes under one budget of restarts.
pub(crate) struct Crew {
    recruit: Recruit,
    orders: Orders,
    restarts: Arc<AtomicU32>,
    say: UnboundedSender<String>,
}

impl Crew {
    /// A crew that may start `restarts` processes in place of dead ones. Lines for people go to `say`.
    pub(crate) fn new(recruit: Recruit, restarts: u32, orders: Orders, say: UnboundedSender<String>) -> Self {
        Self { recruit, orders, restarts: Arc::new(AtomicU32::new(restarts)), say }
    }

    /// Keeps `count` workers going until the order to drain; returns when all have ended. Dropping the future kills
    /// them.
    ///
    /// # Errors
    /// `RESTARTS_SPENT` with the last lines of the worker that died once too often; `WORKER_BINARY`.
    pub(crate) async fn run(self, count: u32) -> Result<()> {
        let crew = Arc::new(self);
        let mut all = JoinSet::new();
        for index in 0..count {
            all.spawn(Arc::clone(&crew).keep(index));
        }
        while let Some(ended) = all.join_next().await {
            ended.map_err(|error| code::INTERNAL.error("a supervisor task panicked").caused_by(error))??;
        }
        Ok(())
    }

    async fn keep(self: Arc<Self>, index: u32) -> Result<()> {
        let mut wait = FIRST_WAIT;
        loop {
            let relay = self.recruit.verbose.then(|| self.say.clone());
            let mut process = Process::start(self.recruit.command(index), &name(index), relay)?;
            let status = tokio::select! {
                status = process.ended() => status?,
                () = self.orders.drain.cancelled() => {
                    process.drain(DRAIN_LIMIT).await;
                    return Ok(());
                }
            };
            let lines = process.last_lines().await;
            self.spend_restart(index, status, &lines)?;
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
                () = self.orders.drain.cancelled() => return Ok(()),
            }
        }
    }

    fn spend_restart(&self, index: u32, status: ExitStatus, lines: &[String]) -> Result<()> {
        let spent = self.restarts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let Ok(left) = spent else { return Err(too_often(index, status, lines)) };
        let last = lines.last().map_or(String::new(), |line| format!(" (it wrote: {line})"));
        // Nobody listens any more: the command is about to end.
        let _ = self.say.send(format!(
            "{} ended, {status}{last}; starting it again, {} more restarts are allowed",
            name(index),
            left - 1
        ));
        Ok(())
    }
}

fn too_often(index: u32, status: ExitStatus, lines: &[String]) -> Error {
    let mut text = format!("{} ended, {status}, and no restart is left", name(index));
    if !lines.is_empty() {
        text.push_str("; its last lines:");
    }
    for line in lines {
        text.push_str("\n  ");
        text.push_str(line);
    }
    code::RESTARTS_SPENT.error(text).hint("spec.workers.restarts allows more; `-v` shows what the workers write")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// A worker in a few lines of shell; `$4` is its name.
    fn worker(folder: &tempfile::TempDir, script: &str) -> Recruit {
        let binary = folder.path().join("worker.sh");
        std::fs::write(&binary, format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display())).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        Recruit { binary, address: "http://127.0.0.1:1".into(), threads: 1, device: "cuda".into(), verbose: false }
    }

    #[tokio::test]
    async fn a_worker_that_always_dies_spends_the_restarts_and_its_last_lines_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let recruit = worker(&folder, "echo start >> starts; echo no libtorch here >&2; exit 7");
        let (say, mut said) = unbounded_channel();
        let error = Crew::new(recruit, 2, Orders::default(), say).run(1).await.unwrap_err();
        assert_eq!(error.code(), code::RESTARTS_SPENT);
        assert!(
            error.message().contains("exit status: 7") && error.message().contains("\n  no libtorch here"),
            "{error}"
        );
        let starts = std::fs::read_to_string(folder.path().join("starts")).unwrap();
        assert_eq!(starts.lines().count(), 3, "once and two restarts");
        assert!(said.recv().await.unwrap().contains("1 more restarts"));
    }

    #[tokio::test]
    async fn draining_lets_workers_finish_and_a_killed_one_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        // Worker 1 dies by a signal at its first start; then both wait for SIGTERM and leave a file.
        let script = "
            if [ $4 = worker-1 ] && [ ! -e died ]; then touch died; kill -9 $$; fi
            echo \"$@\" > $4.args
            trap 'touch $4.drained; exit 0' TERM
            while :; do sleep 0.05; done";
        let recruit = worker(&folder, script);
        let (say, mut said) = unbounded_channel();
        let orders = Orders::default();
        let crew = Crew::new(recruit, 1, orders.clone(), say).run(2);
        let there = |name: &str| folder.path().join(name).exists();
        let drain = async {
            while !(there("worker-0.args") && there("worker-1.args")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The trap is set right after the file is written.
            tokio::time::sleep(Duration::from_millis(200)).await;
            orders.drain.cancel();
        };
        let (ended, ()) = tokio::join!(crew, drain);
        ended.unwrap();
        assert!(there("worker-0.drained") && there("worker-1.drained"));
        assert!(said.recv().await.unwrap().contains("signal: 9"));
        let args = std::fs::read_to_string(folder.path().join("worker-1.args")).unwrap();
        assert!(
            args.contains("--coordinator http://127.0.0.1:1 --name worker-1 --device cuda:1 --threads 1"),
            "{args}"
        );
    }
}
