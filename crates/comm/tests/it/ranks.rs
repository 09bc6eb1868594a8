//! Rank processes: this test binary, started again as a child that obeys commands.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleach_comm::conformance::{Form, drive};
use pleach_comm::{GroupOptions, RendezvousServer, StoreAddr, gloo};

const STORE_PORT: &str = "PLEACH_TEST_STORE_PORT";
/// Longer than anything a healthy rank takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Not a test: the body of a rank process.
#[test]
#[ignore = "started by other tests as a rank process"]
fn rank_process() {
    let Ok(port) = std::env::var(STORE_PORT) else { return };
    let port: u16 = port.parse().unwrap();
    tch::set_num_threads(1);
    let form = move |form: &Form| {
        let mut options =
            GroupOptions::new(form.rank, form.world, form.prefix.as_str(), StoreAddr::new("127.0.0.1", port));
        options.timeout = form.timeout;
        options.checked = form.checked;
        gloo(&options)
    };
    drive(form, BufReader::new(std::io::stdin()), std::io::stdout());
}

/// Not a test: a process that only serves a store.
#[test]
#[ignore = "started by other tests as a process that serves a store"]
fn host_process() {
    if std::env::var(STORE_PORT).is_ok() {
        let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
        println!("@ hosts {}", server.port());
        // Ends when the test closes its end, or kills it.
        let _ = std::io::stdin().read_line(&mut String::new());
    }
}

/// A rank process; killed when dropped.
pub(crate) struct Rank {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Rank {
    pub(crate) fn spawn(server: &RendezvousServer) -> Self {
        Self::start("ranks::rank_process", server.port())
    }

    /// A process that serves a store and says on which port.
    pub(crate) fn spawn_host() -> Self {
        Self::start("ranks::host_process", 0)
    }

    fn start(body: &str, port: u16) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([body, "--exact", "--ignored", "--nocapture"])
            .env(STORE_PORT, port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The harness prints lines of its own, and the first answer may follow one without a line break.
                if let Some(at) = line.find("@ ") {
                    let _ = send.send(line[at + 2..].to_owned());
                }
            }
        });
        Self { child, stdin, answers }
    }

    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    pub(crate) fn answer(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("the rank answers")
    }

    pub(crate) fn is_silent_for(&self, time: Duration) -> bool {
        matches!(self.answers.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rank processes and the store where they meet.
pub(crate) struct Gang {
    pub(crate) ranks: Vec<Rank>,
    _server: RendezvousServer,
    groups: u32,
}

impl Gang {
    pub(crate) fn start(processes: usize) -> Self {
        let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
        let ranks = (0..processes).map(|_| Rank::spawn(&server)).collect();
        Self { ranks, _server: server, groups: 0 }
    }

    /// The first `world` processes form a new group.
    pub(crate) fn form(&mut self, world: usize, mode: &str, timeout_ms: u32) {
        self.groups += 1;
        for rank in 0..world {
            let command = format!("form {rank} {world} g{} {mode} {timeout_ms}", self.groups);
            self.ranks[rank].tell(&command);
        }
        for rank in &self.ranks[..world] {
            assert_eq!(rank.answer(), "formed");
        }
    }

    /// Tells all of the first `world` processes the same and collects the answers.
    pub(crate) fn ask(&mut self, world: usize, command: &str) -> Vec<String> {
        for rank in &mut self.ranks[..world] {
            rank.tell(command);
        }
        self.ranks[..world].iter().map(Rank::answer).collect()
    }
}
