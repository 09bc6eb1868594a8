//! The cases of torchft's `manager_integ_test.py`, by their names. There replicas are threads that raise exceptions; here they are
//! processes that die. What is about the collective itself is in the tests of `comm`.

use serde_json::Value;

use crate::cluster::{Cluster, Times};
use crate::support::{Bench, adapter};

/// More steps than any test waits for.
const ENDLESS: u64 = 100_000;

fn spec(bench: &Bench, steps: u64, min: u32, max: u32) -> Value {
    let mut spec = bench.spec(steps);
    spec["workers"]["min"] = min.into();
    spec["workers"]["max"] = max.into();
    spec["train"]["lanes"] = 4.into();
    // What is in the store is no help to a gang that lives.
    spec["checkpoint"]["every"] = 1000.into();
    spec
}

/// The end that each of these jobs must have: each sample once, the bits of an undisturbed run of as many steps. Returns the steps.
fn assert_as_if_nothing_happened(cluster: &Cluster<'_>, bench: &Bench, id: &str) -> u64 {
    let (job, steps) = cluster.finish(id);
    cluster.feeds().assert_exactly_once(steps, 64, 8);
    let alone = Bench::new();
    let reference = alone.trained(&alone.job("alone", &spec(&alone, steps, 1, 1)), &[]);
    let expected = adapter(&alone.path("store"), &reference);
    assert!(adapter(&bench.path("store"), &job) == expected, "another adapter than one undisturbed worker's");
    steps
}

#[test]
fn ddp_healthy() {
    let bench = Bench::new();
    let cluster = Cluster::with_workers(&bench, "c", 2);
    cluster.submit(&bench.job("healthy", &spec(&bench, ENDLESS, 2, 2)));
    cluster.until_fed(2, 10);
    let steps = assert_as_if_nothing_happened(&cluster, &bench, "healthy");
    assert_eq!(cluster.feeds().worlds(steps), [2]);
}

/// The job needs both: it waits for the replacement, which gets the state from the survivor.
#[test]
fn ddp_recovery_sync_quorum() {
    let bench = Bench::new();
    let mut cluster = Cluster::with_workers(&bench, "c", 2);
    cluster.submit(&bench.job("recovery", &spec(&bench, ENDLESS, 2, 2)));
    cluster.until_fed(2, 2);
    cluster.fault("w1", "before_forward", "kill");
    cluster.until_dead("w1");
    let at = cluster.feeds().newest(2);
    cluster.join("w1");
    cluster.until_fed(2, at);
    let steps = assert_as_if_nothing_happened(&cluster, &bench, "recovery");
    let feeds = cluster.feeds();
    assert_eq!(feeds.worlds(steps), [2]);
    assert!(feeds.resumed_from_memory(), "{:?}", feeds.sources());
}

/// The job may go on with one: it does, and takes the replacement in when that is prepared.
#[test]
fn ddp_recovery_async_quorum() {
    let bench = Bench::new();
    let mut cluster = Cluster::with_workers(&bench, "c", 2);
    cluster.submit(&bench.job("recovery", &spec(&bench, ENDLESS, 1, 2)));
    let at = cluster.until_fed(2, 2);
    cluster.fault("w1", "after_backward", "kill");
    cluster.until_dead("w1");
    let at = cluster.until_fed(1, at);
    cluster.join("w1");
    cluster.until_fed(2, at);
    let steps = assert_as_if_nothing_happened(&cluster, &bench, "recovery");
    let feeds = cluster.feeds();
    assert_eq!(feeds.worlds(steps), [2, 1, 2]);
    assert!(feeds.resumed_from_memory(), "{:?}", feeds.sources());
}

/// At the very beginning all ranks make the same state by themselves; nothing is sent.
#[test]
fn ddp_skip_init_sync() {
    let bench = Bench::new();
    let cluster = Cluster::with_workers(&bench, "c", 2);
    cluster.submit(&bench.job("fresh", &spec(&bench, ENDLESS, 2, 2)));
    cluster.until_fed(2, 2);
    assert_as_if_nothing_happened(&cluster, &bench, "fresh");
    let sources = cluster.feeds().sources();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert!(sources[0].1.iter().eq(["fresh"]), "{sources:?}");
}

/// Two of four die in one step, as both ranks of one replica would.
#[test]
fn ddp_recovery_multi_rank() {
    let bench = Bench::new();
    let mut cluster = Cluster::with_workers(&bench, "c", 4);
    cluster.submit(&bench.job("recovery", &spec(&bench, ENDLESS, 2, 4)));
    let at = cluster.until_fed(4, 2);
    for name in ["w2", "w3"] {
        cluster.fault(name, "after_backward", "kill");
    }
    for name in ["w2", "w3"] {
        cluster.until_dead(name);
    }
    let at = cluster.until_fed(2, at);
    cluster.join("w2");
    cluster.join("w3");
    cluster.until_fed(4, at);
    assert_as_if_nothing_happened(&cluster, &bench, "recovery");
    assert!(cluster.feeds().resumed_from_memory());
}

/// Too few workers: waiting says for what, survives nothing coming, and ends when asked.
#[test]
fn quorum_timeout() {
    let bench = Bench::new();
    let cluster = Cluster::new(&bench, "c", Times::default());
    cluster.submit(&bench.job("waits", &spec(&bench, ENDLESS, 2, 2)));
    let job = cluster.until("waits", "queued", |job| job["state"] == "queued");
    let reason = job["reason"].as_str().unwrap();
    assert!(reason.contains('2') && reason.contains("worker"), "says what it waits for: {reason}");
    cluster.output(&["cancel", "waits", "--reason", "nobody came"]);
    let job = cluster.until("waits", "cancelled", |job| job["state"] == "cancelled");
    assert!(job["reason"].as_str().unwrap().contains("nobody came"), "{job:#}");
}
