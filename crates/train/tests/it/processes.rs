//! Ranks as real processes: this test binary, started again as one rank each, joined by Gloo.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pleach_comm::{GroupOptions, RendezvousServer, StoreAddr};
use pleach_train::StopSignal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fixture::{Heard, parse, run};

const TASK: &str = "PLEACH_TEST_RANK";

/// What one rank process is to do.
#[derive(Clone, Serialize, Deserialize)]
struct RankTask {
    job: Value,
    rank: usize,
    world: usize,
    port: u16,
    generation: u64,
    drain_at: Option<u64>,
    die_at: Option<u64>,
    report: std::path::PathBuf,
}

/// What it saw.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// `Finished`, `Drained`, or the code of the error.
    pub(crate) end: String,
    pub(crate) message: String,
    pub(crate) losses: Vec<f64>,
    pub(crate) digests: Vec<String>,
    pub(crate) skipped: Vec<u64>,
    pub(crate) metrics: Vec<std::collections::BTreeMap<String, f64>>,
    pub(crate) durable: Vec<u64>,
}

impl Report {
    pub(crate) fn of(outcome: pleach_base::Result<pleach_train::Outcome>, heard: &Heard) -> Self {
        let (end, message) = match outcome {
            Ok(outcome) => (format!("{outcome:?}"), String::new()),
            Err(error) => (error.code().id.to_owned(), error.chain()),
        };
        let steps = heard.steps.lock().unwrap();
        Self {
            end,
            message,
            // JSON has no NaN.
            losses: steps.iter().map(|row| if row.loss.is_finite() { row.loss } else { -1.0 }).collect(),
            digests: steps.iter().map(|row| row.digest.clone()).collect(),
            skipped: steps.iter().filter(|row| row.skipped).map(|row| row.step).collect(),
            metrics: heard.evals.lock().unwrap().iter().map(|row| row.metrics.clone()).collect(),
            durable: heard.durable.lock().unwrap().iter().map(|row| row.step.0).collect(),
        }
    }
}

/// Not a test: the body of a rank process.
#[test]
#[ignore = "started by other tests as a rank process"]
fn rank_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: RankTask = serde_json::from_str(&task).unwrap();
    tch::set_num_threads(1);
    let store = StoreAddr::new("127.0.0.1", task.port);
    let mut options = GroupOptions::new(task.rank, task.world, format!("test/g{}", task.generation), store);
    options.timeout = Duration::from_secs(60);
    let group = pleach_comm::gloo(&options).unwrap();
    let stop = StopSignal::default();
    let mut heard = match task.drain_at {
        Some(step) => Heard::draining_at(step, &stop),
        None => Heard::default(),
    };
    heard.die_at = task.die_at;
    let heard = Arc::new(heard);
    let outcome = run(parse(&task.job), group.as_ref(), task.generation, &heard, stop);
    let report = Report::of(outcome, &heard);
    std::fs::write(&task.report, serde_json::to_vec(&report).unwrap()).unwrap();
}

/// How a gang is run.
#[derive(Clone, Default)]
pub(crate) struct Gang {
    pub(crate) generation: u64,
    /// A rank and the step after which it asks to drain.
    pub(crate) drain: Option<(usize, u64)>,
    /// A rank and the step after which its process dies.
    pub(crate) die: Option<(usize, u64)>,
    /// Jobs of single ranks that differ.
    pub(crate) other: Vec<(usize, Value)>,
    /// Variables that all ranks see.
    pub(crate) env: Vec<(&'static str, String)>,
}

/// Runs a job in `world` processes; their reports by rank.
pub(crate) fn gang(folder: &Path, job: &Value, world: usize, how: &Gang) -> Vec<Report> {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let report = |rank: usize| folder.join(format!("report-{world}-{}-{rank}.json", how.generation));
    let children: Vec<_> = (0..world)
        .map(|rank| {
            let other = how.other.iter().find(|(of, _)| *of == rank).map(|(_, job)| job);
            let task = RankTask {
                job: other.unwrap_or(job).clone(),
                rank,
                world,
                port: server.port(),
                generation: how.generation.max(1),
                drain_at: how.drain.filter(|(of, _)| *of == rank).map(|(_, step)| step),
                die_at: how.die.filter(|(of, _)| *of == rank).map(|(_, step)| step),
                report: report(rank),
            };
            Killed(spawn(&task, &how.env))
        })
        .collect();
    for (rank, mut child) in children.into_iter().enumerate() {
        let status = child.0.wait().unwrap();
        let dies = how.die.is_some_and(|(of, _)| of == rank);
        assert!(status.success() != dies, "rank {rank} ended with {status}");
    }
    // A rank that died has nothing to report.
    let read = |rank| {
        std::fs::read(report(rank)).map_or_else(|_| Report::default(), |text| serde_json::from_slice(&text).unwrap())
    };
    (0..world).map(read).collect()
}

/// Does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(task: &RankTask, env: &[(&'static str, String)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["processes::rank_process", "--exact", "--ignored", "--nocapture"])
        .env(TASK, serde_json::to_string(task).unwrap())
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
