//! Real worker processes, and what they told the coordinator of the test.

use std::path::Path;
use std::process::{Child, Command as Program, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{Assignment, CommitRecord, Member, Prepare, RegisterRequest, TaskHead};
use serde_json::Value;

use crate::coordinator::{Coordinator, Said};

/// A worker process; killed when dropped.
pub(crate) struct Worker {
    child: Child,
}

impl Worker {
    pub(crate) fn start(coordinator: &str, name: &str, more: &[&str]) -> Self {
        let child = Program::new(env!("CARGO_BIN_EXE_pleach-worker"))
            .args(["--coordinator", coordinator, "--name", name, "--threads", "1"])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end; the status.
    pub(crate) async fn ended(mut self) -> std::process::ExitStatus {
        for _ in 0..1500 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the worker does not end");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As members of a gang, in this order.
pub(crate) fn members(workers: &[RegisterRequest]) -> Vec<Member> {
    let member = |(rank, worker): (usize, &RegisterRequest)| Member {
        worker: worker.worker.clone(),
        incarnation: worker.incarnation,
        rank: rank as u32,
        host: worker.host.clone(),
        pulse_port: worker.pulse_port,
        lanes: Vec::new(),
    };
    workers.iter().enumerate().map(member).collect()
}

/// The worker is told to get ready for generation `generation` of job `tiny`.
pub(crate) fn prepare(job: &Value, generation: u64, members: Vec<Member>) -> Command {
    Command::Prepare(Prepare {
        tenant: "default".into(),
        job: "tiny".into(),
        spec_json: job.to_string(),
        term: 1,
        generation,
        members,
    })
}

/// Everything that was recorded, in the order in which it was told.
pub(crate) fn commits(said: &Said) -> Vec<CommitRecord> {
    let records = |report: &pleach_proto::v1::ReportRequest| match &report.report {
        Some(Report::Commits(commits)) => commits.records.clone(),
        _ => Vec::new(),
    };
    said.reports.iter().flat_map(records).collect()
}

/// Forms generation `generation` of these workers, going on from what is recorded.
pub(crate) fn form(coordinator: &Coordinator, job: &Value, generation: u64, workers: &[RegisterRequest]) {
    let recent = {
        let all = commits(&coordinator.0.lock().unwrap());
        all[all.len().saturating_sub(16)..].to_vec()
    };
    let heads = if recent.is_empty() { Vec::new() } else { vec![TaskHead { task: "a".into(), recent }] };
    for (rank, worker) in workers.iter().enumerate() {
        let order = Assignment {
            heads: heads.clone(),
            tenant: "default".into(),
            job: "tiny".into(),
            spec_json: job.to_string(),
            term: 1,
            generation,
            rank: rank as u32,
            world: workers.len() as u32,
            rendezvous_host: workers[0].host.clone(),
            rendezvous_port: workers[0].rendezvous_port,
            members: members(workers),
        };
        coordinator.send(&worker.worker, Command::Assignment(order));
    }
}

/// Waits until generation `generation` has recorded at least `count` steps.
pub(crate) async fn recorded(coordinator: &Coordinator, generation: u64, count: usize) {
    let of = move |said: &Said| commits(said).iter().filter(|record| record.generation == generation).count();
    coordinator.wait("recorded steps", |said| (of(said) >= count).then_some(())).await;
}

/// Asserts that every step was recorded once, in order, from 1 on, and returns how many there are.
pub(crate) fn gapless(coordinator: &Coordinator) -> u64 {
    let steps: Vec<u64> = commits(&coordinator.0.lock().unwrap()).iter().map(|record| record.step).collect();
    let expected: Vec<u64> = (1..=steps.len() as u64).collect();
    assert_eq!(steps, expected);
    steps.len() as u64
}

/// The workers `names`, registered.
pub(crate) async fn registered(coordinator: &Coordinator, names: &[&str]) -> Vec<RegisterRequest> {
    let mut all = Vec::new();
    for name in names {
        all.push(coordinator.worker(name).await);
    }
    all
}

/// Lines of the feed logs in a folder.
pub(crate) fn fed(folder: &Path) -> Vec<Value> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let lines = files.flat_map(|path| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    lines.collect()
}
