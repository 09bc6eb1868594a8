//! The coordinator is killed and comes back: Determined's master-restart matrix. How long it is away, times what the job does meanwhile.
//!
//! Times are scaled by ten (a lease of 1 s, away for 0, 2, 6 s); `PLEACH_FULL_OUTAGES` takes them in full (10 s; 0, 20, 60 s).

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Times, members};
use crate::support::Bench;

/// Rows of the bench's data, and rows of a step.
const ROWS: u64 = 64;
const BATCH: u64 = 8;

fn in_full() -> bool {
    std::env::var_os("PLEACH_FULL_OUTAGES").is_some()
}

/// The unit of time: a tenth of a lease.
fn unit() -> Duration {
    Duration::from_millis(if in_full() { 1000 } else { 100 })
}

/// Downtimes of 0, 20 and 60 units. In full, workers wait for as long as they do by default; else for longer, since what
/// they need to find the coordinator again does not shrink with the unit.
fn each_downtime(name: &str, run: impl Fn(&mut Cluster<'_>, &Bench, Duration)) {
    for units in [0, 20, 60] {
        let bench = Bench::new();
        let times = Times { lease: 10 * unit(), grace: if in_full() { 75 } else { 100 } * unit() };
        let mut cluster = Cluster::new(&bench, &format!("{name}-{units}"), times);
        run(&mut cluster, &bench, units * unit());
    }
}

/// The coordinator is away for so long.
fn outage(cluster: &mut Cluster<'_>, downtime: Duration) {
    cluster.kill_coordinator();
    std::thread::sleep(downtime);
    cluster.start_coordinator();
}

fn submit(cluster: &Cluster<'_>, bench: &Bench, id: &str, steps: u64, (min, max): (u32, u32)) {
    let mut spec = bench.spec(steps);
    spec["workers"]["min"] = min.into();
    spec["workers"]["max"] = max.into();
    cluster.submit(&bench.job(id, &spec));
}

/// More steps than any test waits for.
const ENDLESS: u64 = 1_000_000;

fn pair(cluster: &mut Cluster<'_>, bench: &Bench, steps: u64) -> u64 {
    cluster.join("w0");
    cluster.join("w1");
    submit(cluster, bench, "run", steps, (1, 2));
    cluster.until_members("run", &["w0", "w1"]);
    cluster.until_fed(2, 2)
}

fn assert_done(cluster: &Cluster<'_>, steps: u64) -> Value {
    let job = cluster.until_done("run");
    assert_eq!(job["tasks"][0]["step"], steps, "{job:#}");
    cluster.feeds().assert_exactly_once(steps, ROWS, BATCH);
    job
}

/// The end of an endless job, with each sample once.
fn ended(cluster: &Cluster<'_>) -> Value {
    let (job, steps) = cluster.finish("run");
    cluster.feeds().assert_exactly_once(steps, ROWS, BATCH);
    job
}

#[test]
fn queued() {
    each_downtime("queued", |cluster, bench, downtime| {
        for id in ["first", "second"] {
            submit(cluster, bench, id, 20, (1, 1));
        }
        let before = ["first", "second"].map(|id| cluster.until(id, "queued", |job| job["state"] == "queued"));
        outage(cluster, downtime);
        for (id, before) in ["first", "second"].into_iter().zip(before) {
            let after = cluster.job(id);
            assert_eq!(after["state"], "queued", "{after:#}");
            assert_eq!(after["created_unix_ms"], before["created_unix_ms"]);
            assert!(!after["reason"].as_str().unwrap().is_empty(), "{after:#}");
        }
        cluster.join("w0");
        cluster.until_done("first");
        let second = cluster.until_done("second");
        let first = cluster.job("first");
        let ended = |job: &Value| job["updated_unix_ms"].as_u64().unwrap();
        assert!(ended(&first) <= ended(&second), "the first in the queue is the first to train");
    });
}

/// Training goes on while nobody answers, and the same generation reattaches.
#[test]
fn running() {
    each_downtime("running", |cluster, bench, downtime| {
        let at = pair(cluster, bench, ENDLESS);
        let before = cluster.job("run");
        cluster.kill_coordinator();
        let at = cluster.until_fed(2, at);
        std::thread::sleep(downtime);
        let at = cluster.until_fed(2, at);
        cluster.start_coordinator();
        let after = cluster.until_members("run", &["w0", "w1"]);
        assert_eq!(after["generation"], before["generation"], "{after:#}");
        cluster.until("run", "steps are told again", |job| job["tasks"][0]["step"].as_u64().unwrap() > at);
        let ended = ended(cluster);
        assert_eq!(ended["generation"], before["generation"], "no second generation: {ended:#}");
        assert_eq!(cluster.feeds().generations().len(), 1);
    });
}

/// A worker was asked to leave just before.
#[test]
fn pausing() {
    each_downtime("pausing", |cluster, bench, downtime| {
        let at = pair(cluster, bench, ENDLESS);
        cluster.worker("w1").terminate().unwrap();
        outage(cluster, downtime);
        cluster.until_dead("w1");
        cluster.until_members("run", &["w0"]);
        cluster.until_fed(1, at);
        ended(cluster);
    });
}

/// The job was cancelled just before: it ends as that, with a checkpoint, and does not come back to life.
#[test]
fn stopping() {
    each_downtime("stopping", |cluster, bench, downtime| {
        pair(cluster, bench, ENDLESS);
        cluster.output(&["cancel", "run", "--no-wait"]);
        outage(cluster, downtime);
        let job = cluster.until("run", "cancelled", |job| job["state"] == "cancelled");
        assert!(members(&job).is_empty(), "{job:#}");
        cluster.until_idle(2);
        assert_eq!(cluster.job("run")["state"], "cancelled");
        assert!(bench.path("store/default/run/words/log").exists(), "a checkpoint was made");
    });
}

/// A worker dies while nobody is there to see it.
#[test]
fn killed() {
    each_downtime("killed", |cluster, bench, downtime| {
        let at = pair(cluster, bench, ENDLESS);
        cluster.kill_coordinator();
        let at = cluster.until_fed(2, at);
        cluster.kill("w1");
        std::thread::sleep(downtime);
        cluster.start_coordinator();
        cluster.until_members("run", &["w0"]);
        cluster.until_fed(1, at);
        ended(cluster);
        let feeds = cluster.feeds();
        assert!(feeds.resumed_from_memory(), "{:?}", feeds.sources());
    });
}

/// The job comes to its end while nobody is there to hear it.
#[test]
fn ending() {
    each_downtime("ending", |cluster, bench, downtime| {
        pair(cluster, bench, 150);
        // Near the end, since workers do not go on for longer than the grace, however slow they are.
        cluster.until_fed(2, 130);
        cluster.kill_coordinator();
        cluster.wait("the last step is fed", || cluster.feeds().newest(2) == 150);
        std::thread::sleep(downtime);
        cluster.start_coordinator();
        let job = assert_done(cluster, 150);
        assert_eq!(job["tasks"][0]["durable_step"], 150, "{job:#}");
        cluster.until_idle(2);
    });
}

/// A restart takes nothing from what a user may ask for.
#[test]
fn cancel_works_after_a_restart() {
    let bench = Bench::new();
    let mut cluster = Cluster::new(&bench, "cancel", Times::default());
    pair(&mut cluster, &bench, ENDLESS);
    outage(&mut cluster, Duration::ZERO);
    cluster.output(&["cancel", "run"]);
    assert_eq!(cluster.job("run")["state"], "cancelled");
    cluster.until_idle(2);
}

/// Nothing gets stuck: each time a new job is taken and trained.
#[test]
fn three_restarts_in_a_row() {
    let bench = Bench::new();
    let mut cluster = Cluster::with_workers(&bench, "again", 1);
    for id in ["one", "two", "three"] {
        submit(&cluster, &bench, id, 10, (1, 1));
        cluster.until_done(id);
        outage(&mut cluster, Duration::ZERO);
        assert_eq!(cluster.job(id)["state"], "succeeded");
    }
}
