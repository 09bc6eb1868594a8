//! A cluster that trains without end, and ways to wait for what it does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use pleach_base::SharedClock;
use pleach_base::shutdown::Shutdown;
use pleach_testkit::etcd;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::cluster::{Cluster, Plan};
use crate::feed::{Feeds, Fence};
use crate::measure::quantiles;
use crate::node::Role;
use crate::watch;
use crate::workload::{self, Workload};

use super::probe::Probe;
use super::seen::Seen;

const LOOK_EVERY: Duration = Duration::from_millis(3);
/// A trial that has not recovered by then does not.
const LIMIT: Duration = Duration::from_secs(240);
const JOB: &str = "recovery";
/// The narrowest model whose heads still have an even width.
const WIDTH: u32 = 64;
/// Enough for every number of workers; divides the batch.
const LANES: u32 = 8;
/// Steps of an epoch; there is always another epoch.
const EPOCH: u64 = 100;

/// How a scenario's cluster is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) workers: u32,
    pub(super) etcd: bool,
    /// Rank of the adapter: how large the state is.
    pub(super) rank: u64,
    /// Strict mode adds up the gradient of every lane by itself, which costs much with a large state.
    pub(super) strict: bool,
}

pub(super) struct Bench {
    pub(super) probe: Probe,
    pub(super) cluster: Cluster,
    pub(super) seen: Seen,
    pub(super) workers: usize,
    clock: SharedClock,
    shutdown: Shutdown,
}

impl Bench {
    /// Starts everything and waits until it trains.
    pub(super) fn start(
        folder: &Path,
        setting: &Setting,
        runtime: &Runtime,
        clock: SharedClock,
        shutdown: Shutdown,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let work = Workload::write(
            &folder.join("data"),
            WIDTH,
            if setting.strict { LANES } else { setting.workers },
            EPOCH * 100_000,
            100_000,
        )?;
        let plan = Plan {
            folder: folder.to_owned(),
            workers: setting.workers,
            etcd: setting.etcd,
            disks: false,
            proxies: false,
            env: Vec::new(),
            runtime: runtime.handle().clone(),
        };
        let cluster = Cluster::start(&plan, None, clock.elapsed())?;
        let job = job(&work, folder, setting).to_string();
        std::fs::write(folder.join("job.json"), &job)?;
        runtime.block_on(watch::submit(&cluster.endpoints, &job, JOB, &clock))?;
        let probe = Probe::start(runtime.handle(), &clock, &cluster.endpoints, JOB)?;
        let seen = Seen::of(Feeds::of(&cluster.feed_folder()));
        let mut bench = Self { probe, cluster, seen, workers: setting.workers as usize, clock, shutdown };
        bench.steady().inspect_err(|_| eprintln!("{}", bench.last_words()))?;
        Ok(bench)
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Waits for `found`.
    pub(super) fn until<T>(&mut self, what: &str, found: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let limit = self.now() + LIMIT;
        loop {
            let now = self.now();
            self.seen.look(now)?;
            if let Some(found) = found(self) {
                return Ok(found);
            }
            if self.shutdown.is_requested() {
                bail!("asked to stop");
            }
            if now > limit {
                bail!("{what}: not within {} s; the job is {}", LIMIT.as_secs(), self.probe.log().state);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until every worker is a member and a few steps have been recorded since. Returns the generation.
    pub(super) fn steady(&mut self) -> Result<Fence> {
        let workers = self.workers;
        let fence = self.until("a generation of all workers", |bench| {
            let fence = bench.seen.newest();
            let ready = &bench.seen.generations.get(&fence)?.ready;
            (ready.len() == workers).then_some(fence)
        })?;
        let from = self.probe.log().step();
        self.until("three more steps", |bench| (bench.probe.log().step() >= from + 3).then_some(()))?;
        // Another generation may have begun meanwhile.
        if self.seen.newest() == fence { Ok(fence) } else { self.steady() }
    }

    /// Median time between the last steps that a generation began.
    pub(super) fn step_time(&self, fence: Fence) -> Option<Duration> {
        let begun: Vec<Duration> = self.seen.generations.get(&fence)?.fed.values().copied().collect();
        let last = &begun[begun.len().saturating_sub(20)..];
        let between = last.windows(2).map(|pair| pair[1].saturating_sub(pair[0]).as_secs_f64()).collect();
        quantiles(between).0.map(Duration::from_secs_f64)
    }

    /// Kills a node, at once.
    pub(super) fn kill(&mut self, at: usize) -> Result<Duration> {
        let now = self.now();
        self.cluster.nodes[at].signal(Signal::SIGKILL, true)?;
        Ok(now)
    }

    /// Starts a killed node again.
    pub(super) fn restart(&mut self, at: usize) -> Result<Duration> {
        let now = self.now();
        self.cluster.nodes[at].start(now)?;
        Ok(now)
    }

    /// The node of the coordinator that answers.
    pub(super) fn leader(&self) -> Result<(usize, usize)> {
        let endpoint = self.probe.log().recorded.last().context("no coordinator answers")?.leader;
        Ok((endpoint, self.cluster.of(Role::Coordinator)[endpoint]))
    }

    /// The node of the member of etcd that leads.
    pub(super) fn etcd_leader(&self) -> Result<usize> {
        let leads = |at: &usize| {
            let url = self.cluster.nodes[*at].argument("--listen-client-urls");
            url.and_then(|url| url.rsplit(':').next()?.parse().ok()).is_some_and(etcd::leads)
        };
        self.cluster.of(Role::Etcd).into_iter().find(leads).context("no member of etcd leads")
    }

    /// The last lines of all nodes.
    pub(super) fn last_words(&self) -> String {
        let words = self.cluster.nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.tail(15)));
        words.collect::<Vec<_>>().join("\n")
    }
}

/// The harness's job, without an end and with few checkpoints.
fn job(work: &Workload, folder: &Path, setting: &Setting) -> Value {
    let store = folder.join("store").display().to_string();
    let mut job = workload::job(work, JOB, setting.workers, &store);
    job["spec"]["checkpoint"]["every"] = 1000.into();
    job["spec"]["tasks"][0]["adapter"]["r"] = setting.rank.into();
    job["spec"]["train"]["determinism"] = if setting.strict { "strict" } else { "fast" }.into();
    job
}

/// The rank at which adapter and optimiser state are of this size: three float32 numbers a parameter.
pub(super) fn rank_for(megabytes: u64) -> u64 {
    let width = u64::from(WIDTH);
    let (heads, inner) = ((width / 32).max(2), width * 3);
    let keys = width / heads * (heads / 2);
    // q and o, k and v, and the three of the feed-forward part; in and out of each.
    let a_layer = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner);
    (megabytes * 1_000_000 / (3 * 4 * a_layer * workload::LAYERS)).max(1)
}
