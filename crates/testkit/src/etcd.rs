//! etcd for tests: one member or a cluster of three, on free ports of the loopback interface, with default timeouts.
//! Members can be killed, started again on their data, stopped and resumed.

#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pleach_base::{SharedClock, SystemClock};
use tempfile::TempDir;

use crate::process::{Process, free_port, temp_dir};

/// Between two looks at a member.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A member that does not answer in this time is stopped or gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running etcd. Dropping it ends all members and removes their data.
pub struct Etcd {
    members: Vec<Member>,
    data: TempDir,
    clock: SharedClock,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Process>,
}

impl Etcd {
    /// Starts `members` members (1 or 3) and waits until each of them answers.
    ///
    /// # Errors
    /// When `etcd` is not installed, or the cluster does not become healthy.
    pub fn start(members: usize) -> Result<Self> {
        let found = Command::new("etcd").arg("--version").output();
        let hint = "etcd is not there: install it (Debian: `apt-get install etcd-server`)";
        ensure!(found.is_ok_and(|found| found.status.success()), hint);
        let member = || Ok(Member { client: free_port()?, peer: free_port()?, process: None });
        let members = (0..members).map(|_| member()).collect::<Result<Vec<_>>>()?;
        let mut etcd = Self { members, data: temp_dir()?, clock: SystemClock::shared() };
        for index in 0..etcd.members.len() {
            etcd.spawn(index)?;
        }
        etcd.wait_healthy(Duration::from_secs(60))?;
        Ok(etcd)
    }

    /// Addresses of all members for clients, `127.0.0.1:PORT,...`.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let all: Vec<_> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        all.join(",")
    }

    /// The number of members, dead ones included.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The member that leads.
    ///
    /// # Errors
    /// When none says so.
    pub fn leader(&self) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()) {
            if leads(member.client) {
                return Ok(index);
            }
        }
        bail!("no member leads")
    }

    /// Ends a member at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let mut process = self.members[index].process.take().context("the member does not run")?;
        process.kill()?;
        Ok(())
    }

    /// Starts a killed member again, on its data.
    ///
    /// # Errors
    /// When it runs, or cannot be started.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        ensure!(self.members[index].process.is_none(), "the member runs");
        self.spawn(index)
    }

    /// Stops a member without its noticing (SIGSTOP).
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, index: usize) -> Result<()> {
        self.running(index)?.pause()
    }

    /// Lets a stopped member go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, index: usize) -> Result<()> {
        self.running(index)?.resume()
    }

    /// Waits until every member that runs says that it is healthy: it reaches a leader and can write.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let deadline = self.clock.elapsed() + limit;
        for (index, member) in self.members.iter().enumerate() {
            let Some(process) = &member.process else { continue };
            while !healthy(member.client) {
                if self.clock.elapsed() >= deadline {
                    bail!("etcd member {index} is not healthy after {limit:?}:\n{}", process.text());
                }
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    fn running(&self, index: usize) -> Result<&Process> {
        self.members[index].process.as_ref().context("the member does not run")
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<_> =
            self.members.iter().enumerate().map(|(index, member)| format!("m{index}={}", url(member.peer))).collect();
        let member = &self.members[index];
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{index}")]);
        command.arg("--data-dir").arg(self.data.path().join(format!("m{index}")));
        command.args(["--listen-client-urls", &url(member.client), "--advertise-client-urls", &url(member.client)]);
        command.args(["--listen-peer-urls", &url(member.peer), "--initial-advertise-peer-urls", &url(member.peer)]);
        command.args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"]);
        command.args(["--logger", "zap", "--log-level", "warn"]);
        self.members[index].process = Some(Process::start(format!("etcd m{index}"), command)?);
        Ok(())
    }
}

fn healthy(port: u16) -> bool {
    request(port, "GET", "/health").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Whether the member that answers clients at this port of the loopback interface says that it leads.
#[must_use]
pub fn leads(client: u16) -> bool {
    let Ok(answer) = request(client, "POST", "/v3/maintenance/status") else { return false };
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let Ok(status) = serde_json::from_str::<serde_json::Value>(body) else { return false };
    let (id, leader) = (&status["header"]["member_id"], &status["leader"]);
    id.is_string() && id == leader
}

fn request(port: u16, method: &str, path: &str) -> Result<String> {
    let address = format!("127.0.0.1:{port}");
    let mut stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
