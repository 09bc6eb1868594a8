//! One worker process and the last lines that it wrote.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleach_base::{Result, ResultExt, code};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

/// Lines kept for the message about a death.
const TAIL: usize = 12;
/// After its end a process's pipes may be held open by others; its last lines are not waited for longer.
const LAST_LINES: Duration = Duration::from_millis(500);

/// A running process. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    tail: Arc<Mutex<VecDeque<String>>>,
    readers: JoinSet<()>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that Ctrl-C reaches `pleach` alone. What it writes goes to
    /// `relay`, line by line after `name`, if there is one.
    pub(super) fn start(mut command: Command, name: &str, relay: Option<UnboundedSender<String>>) -> Result<Self> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .or_code(code::WORKER_BINARY, || format!("{program}: cannot be started"))?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(read(stderr, name.to_owned(), relay.clone(), Arc::clone(&tail)));
        }
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(read(stdout, name.to_owned(), relay, Arc::clone(&tail)));
        }
        Ok(Self { child, tail, readers })
    }

    /// Waits for the end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.or_code(code::INTERNAL, || "cannot wait for a worker process".into())
    }

    /// The last lines, once all are read.
    pub(super) async fn last_lines(&mut self) -> Vec<String> {
        let all = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_LINES, all).await;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Asks the process to drain, and kills it when it has not ended in time.
    pub(super) async fn drain(&mut self, limit: Duration) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended this moment; then there is nothing to ask.
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if tokio::time::timeout(limit, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

async fn read(
    from: impl tokio::io::AsyncRead + Unpin,
    name: String,
    relay: Option<UnboundedSender<String>>,
    tail: Arc<Mutex<VecDeque<String>>>,
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(relay) = &relay {
            // Nobody listens any more: the command is about to end.
            let _ = relay.send(format!("{name}: {line}"));
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}
