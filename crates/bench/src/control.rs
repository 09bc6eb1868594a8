//! The measurement: workers come up; heartbeats alone; then commits of jobs beside them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pleach_proto::v1::SubmitJobRequest;
use pleach_proto::v1::job_service_client::JobServiceClient;
use serde::Serialize;

use crate::fleet::{self, Shared};
use crate::latency::Latency;
use crate::process::{cpu_seconds, cpu_seconds_of_all, machine, memory_mib, peak_mib, raise_files};
use crate::server::Server;

/// How long all jobs may take to get their workers.
const FORMING: Duration = Duration::from_secs(60);

/// Where the coordinator keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A redb file.
    Redb,
    /// An etcd of one member.
    Etcd,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers, each with its connection.
    pub workers: usize,
    /// Jobs of one worker each; 0 measures no commits.
    pub jobs: usize,
    /// Length of each measurement.
    pub each: Duration,
    /// Between a change and the measurement that follows it.
    pub rest: Duration,
    /// Where the state is kept.
    pub state: State,
    /// The program `pleach`.
    pub program: PathBuf,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Cores and their name. The simulated workers run on them too.
    pub machine: String,
    /// Where the state was kept.
    pub state: State,
    /// Workers, each with its connection.
    pub workers: usize,
    /// Jobs that committed.
    pub jobs: usize,
    /// Seconds until all workers had registered and had a session.
    pub join_seconds: f64,
    /// CPU seconds of the coordinator for that.
    pub join_cpu_seconds: f64,
    /// Heartbeats alone.
    pub heartbeats: Phase,
    /// Heartbeats while jobs commit.
    pub heartbeats_beside_commits: Option<Phase>,
    /// Those commits.
    pub commits: Option<Phase>,
    /// MiB that the coordinator held at most.
    pub peak_mib: f64,
}

/// One kind of message during one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// Seconds that were measured.
    pub seconds: f64,
    /// Messages that were answered.
    pub answered: u64,
    /// The same a second.
    pub per_second: f64,
    /// Milliseconds from sending to the answer, as the sender sees it.
    pub p50_ms: f64,
    /// The same for the slowest hundredth.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Cores that the coordinator used, whatever it did: CPU seconds a second.
    pub cores: f64,
    /// The same for each 1,000 workers.
    pub cores_per_1000_workers: f64,
    /// Cores that the simulated workers used.
    pub cores_of_workers: f64,
    /// Cores that all other processes used: etcd, and what has nothing to do with this.
    pub cores_of_others: f64,
    /// MiB that the coordinator held at the end.
    pub memory_mib: f64,
}

/// Measures; `say` is told of the progress.
///
/// # Errors
/// When workers cannot join or jobs do not start, and when a session breaks or a commit is refused meanwhile.
pub fn run(plan: &Plan, say: &dyn Fn(&str)) -> Result<Report> {
    raise_files(plan.workers)?;
    say("starting the coordinator");
    let server = Server::start(&plan.program, plan.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(plan, &server, say));
    // The workers go with the runtime, and do not wait for answers.
    runtime.shutdown_background();
    report
}

async fn measure(plan: &Plan, server: &Server, say: &dyn Fn(&str)) -> Result<Report> {
    let (shared, pid) = (Shared::new(), server.process.pid());
    say(&format!("{} workers join", plan.workers));
    let (begun, cpu) = (shared.clock.elapsed(), cpu_seconds(pid)?);
    fleet::join(&server.url, plan.workers, &shared).await?;
    let join_seconds = (shared.clock.elapsed() - begun).as_secs_f64();
    let join_cpu_seconds = cpu_seconds(pid)? - cpu;
    tokio::time::sleep(plan.rest).await;
    say(&format!("they came in {join_seconds:.1} s; heartbeats alone for {} s", plan.each.as_secs()));
    let alone = watch(plan, pid, &shared).await?;
    let (beside, commits) = if plan.jobs > 0 {
        say(&format!("submitting {} jobs", plan.jobs));
        submit(plan, server, &shared).await?;
        shared.begin_commits();
        tokio::time::sleep(plan.rest).await;
        say(&format!("commits and heartbeats for {} s", plan.each.as_secs()));
        let both = watch(plan, pid, &shared).await?;
        (Some(both.0), Some(both.1))
    } else {
        (None, None)
    };
    let (lost, refused) = shared.trouble();
    ensure!(lost + refused == 0, "{lost} sessions broke and {refused} jobs had a commit refused: nothing was measured");
    Ok(Report {
        machine: machine(),
        state: plan.state,
        workers: plan.workers,
        jobs: plan.jobs,
        join_seconds,
        join_cpu_seconds,
        heartbeats: alone.0,
        heartbeats_beside_commits: beside,
        commits,
        peak_mib: peak_mib(pid)?,
    })
}

/// Heartbeats and commits during the time of one measurement.
async fn watch(plan: &Plan, pid: u32, shared: &Shared) -> Result<(Phase, Phase)> {
    let used =
        || -> Result<[f64; 3]> { Ok([cpu_seconds(pid)?, cpu_seconds(std::process::id())?, cpu_seconds_of_all()?]) };
    let _ = (shared.beats.take(), shared.commits.take());
    let (begun, before) = (shared.clock.elapsed(), used()?);
    tokio::time::sleep(plan.each).await;
    let (seconds, after) = ((shared.clock.elapsed() - begun).as_secs_f64(), used()?);
    let [cores, cores_of_workers, all] = std::array::from_fn(|n| (after[n] - before[n]) / seconds);
    let memory_mib = memory_mib(pid)?;
    let phase = |latency: &Latency| {
        let counts = latency.take();
        Phase {
            seconds,
            answered: counts.total(),
            per_second: counts.total() as f64 / seconds,
            p50_ms: counts.quantile(0.5),
            p99_ms: counts.quantile(0.99),
            max_ms: counts.quantile(1.0),
            cores,
            cores_per_1000_workers: cores * 1000.0 / plan.workers as f64,
            cores_of_workers,
            cores_of_others: (all - cores - cores_of_workers).max(0.0),
            memory_mib,
        }
    };
    Ok((phase(&shared.beats), phase(&shared.commits)))
}

async fn submit(plan: &Plan, server: &Server, shared: &Arc<Shared>) -> Result<()> {
    let mut client = JobServiceClient::connect(server.url.clone()).await.context("the coordinator is gone")?;
    for number in 0..plan.jobs {
        let request = SubmitJobRequest { spec: server.spec(&format!("j{number:05}")), id: String::new() };
        client.submit_job(request).await.context("a job was refused")?;
    }
    let deadline = shared.clock.elapsed() + FORMING;
    while shared.jobs() < plan.jobs {
        ensure!(shared.clock.elapsed() < deadline, "{} of {} jobs got a worker in time", shared.jobs(), plan.jobs);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, state, workers, jobs, join_seconds, join_cpu_seconds, .. } = self;
        writeln!(f, "{workers} workers, {jobs} jobs, state in {state:?}; {machine}, shared with the workers")?;
        writeln!(f, "all joined in {join_seconds:.1} s ({join_cpu_seconds:.1} CPU seconds)")?;
        writeln!(
            f,
            "{:<26}{:>10}{:>9}{:>9}{:>9}{:>8}{:>10}{:>9}{:>9}",
            "", "a second", "p50 ms", "p99 ms", "max ms", "cores", "workers'", "others'", "MiB"
        )?;
        let beside = self.heartbeats_beside_commits.as_ref();
        let rows = [
            ("heartbeats", Some(&self.heartbeats)),
            ("heartbeats beside commits", beside),
            ("commits", self.commits.as_ref()),
        ];
        for (name, phase) in rows.into_iter().filter_map(|(name, phase)| Some((name, phase?))) {
            let Phase {
                per_second, p50_ms, p99_ms, max_ms, cores, cores_of_workers, cores_of_others, memory_mib, ..
            } = phase;
            write!(f, "{name:<26}{per_second:>10.0}{p50_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.2}")?;
            writeln!(f, "{cores:>8.2}{cores_of_workers:>10.2}{cores_of_others:>9.2}{memory_mib:>9.0}")?;
        }
        write!(
            f,
            "cores for 1,000 workers: {:.3}; peak {:.0} MiB",
            self.heartbeats.cores_per_1000_workers, self.peak_mib
        )
    }
}
