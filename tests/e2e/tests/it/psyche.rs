//! Psyche's scenarios of `architectures/centralized/testing/tests/integration_tests.rs`, by their names. There clients are tasks of
//! one process and phases are announced; here they are processes, and what is looked at is what they were fed.

use serde_json::Value;

use crate::cluster::{Cluster, members};
use crate::support::Bench;

/// Rows of the bench's data, and rows of a step.
const ROWS: u64 = 64;
const BATCH: u64 = 8;
/// More steps than any test waits for.
const ENDLESS: u64 = 100_000;

/// A job of so many steps that needs `min` workers and takes `max`. Nothing gets into the store before the end.
fn spec(bench: &Bench, steps: u64, min: u32, max: u32) -> Value {
    let mut spec = bench.spec(steps);
    spec["workers"]["min"] = min.into();
    spec["workers"]["max"] = max.into();
    spec["train"]["lanes"] = 8.into();
    spec["checkpoint"]["every"] = 1000.into();
    spec
}

fn submitted<'a>(bench: &'a Bench, workers: usize, steps: u64, (min, max): (u32, u32)) -> Cluster<'a> {
    let cluster = Cluster::with_workers(bench, "c", workers);
    cluster.submit(&bench.job("run", &spec(bench, steps, min, max)));
    cluster
}

/// The good end, with each sample once.
fn assert_done(cluster: &Cluster<'_>, steps: u64) {
    let job = cluster.until_done("run");
    assert_eq!(job["tasks"][0]["step"], steps, "{job:#}");
    cluster.feeds().assert_exactly_once(steps, ROWS, BATCH);
}

/// The end of an endless job, with each sample once. Returns the worlds that made its steps.
fn ended(cluster: &Cluster<'_>) -> Vec<u64> {
    let (_, steps) = cluster.finish("run");
    cluster.feeds().assert_exactly_once(steps, ROWS, BATCH);
    cluster.feeds().worlds(steps)
}

fn is_waiting(job: &Value) -> bool {
    job["state"] == "queued" && members(job).is_empty()
}

#[test]
fn connect_single_node() {
    let bench = Bench::new();
    let cluster = Cluster::with_workers(&bench, "c", 1);
    cluster.until_idle(1);
}

#[test]
fn connect_multiple_nodes() {
    let bench = Bench::new();
    let cluster = Cluster::with_workers(&bench, "c", 5);
    cluster.until_idle(5);
}

#[test]
fn state_change_waiting_for_members_to_warmup() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 1, 30, (2, 2));
    cluster.until_idle(1);
    let job = cluster.until("run", "waits for members", is_waiting);
    assert!(job["reason"].as_str().unwrap().contains("worker"), "{job:#}");
    cluster.join("w1");
    cluster.until("run", "has its members", |job| members(job).len() == 2);
}

/// A member dies while it gets ready: the job waits for members again, and starts when one comes.
#[test]
fn state_change_shutdown_node_in_warmup() {
    let bench = Bench::new();
    let mut cluster = Cluster::with_workers(&bench, "c", 2);
    cluster.until_idle(2);
    // Stopped, it cannot get ready, so this death is before the first step.
    cluster.worker("w1").pause().unwrap();
    cluster.submit(&bench.job("run", &spec(&bench, 30, 2, 2)));
    cluster.kill("w1");
    cluster.until("run", "waits for members", is_waiting);
    assert_eq!(cluster.feeds().newest(2), 0, "no step was begun");
    cluster.join("w2");
    let job = cluster.until_members("run", &["w0", "w2"]);
    assert_eq!(job["restarts"], 0, "a death before the first step is no failure of the job: {job:#}");
    assert_done(&cluster, 30);
}

#[test]
fn state_change_waiting_for_members_to_round_train() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 0, 30, (2, 2));
    cluster.until("run", "waits for members", is_waiting);
    cluster.join("w0");
    cluster.join("w1");
    cluster.until("run", "runs", |job| job["state"] == "running");
    cluster.until_fed(2, 0);
    assert_done(&cluster, 30);
}

/// Our witness of a step is that all ranks agreed on its digest, and the record of it.
#[test]
fn state_change_waiting_for_members_to_round_witness() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 0, 30, (2, 2));
    cluster.until("run", "waits for members", is_waiting);
    cluster.join("w0");
    cluster.join("w1");
    cluster.until("run", "has recorded steps", |job| job["tasks"][0]["step"].as_u64().unwrap() >= 1);
    assert_done(&cluster, 30);
}

/// Every member trains in every step. Psyche asks a bloom filter of the witnesses; the feed logs say it exactly.
#[test]
fn validate_all_clients_participate_in_witness_bloom() {
    let bench = Bench::new();
    let cluster = submitted(&bench, 5, 20, (5, 5));
    assert_done(&cluster, 20);
    // That each rank of a step's world was fed is checked by `assert_done`; the world was five from first to last.
    assert_eq!(cluster.feeds().worlds(20), [5]);
}

/// A worker waits for its turn; a member dies; the waiting one takes its place.
#[test]
fn replace_node_and_complete_round() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 2, ENDLESS, (2, 2));
    let at = cluster.until_fed(2, 1);
    cluster.join("w2");
    cluster.until_idle(1);
    cluster.kill("w0");
    cluster.until_members("run", &["w1", "w2"]);
    cluster.until_fed(2, at);
    assert_eq!(ended(&cluster), [2]);
}

#[test]
fn finish_epoch() {
    let bench = Bench::new();
    let mut spec = spec(&bench, 0, 4, 4);
    spec["train"]["max_steps"].take();
    spec["train"]["epochs"] = 2.into();
    let cluster = Cluster::with_workers(&bench, "c", 4);
    cluster.submit(&bench.job("run", &spec));
    // Two epochs of eight steps; each sample of each is checked.
    assert_done(&cluster, 2 * ROWS / BATCH);
}

/// Who comes while a step is made takes no part in it, and takes part in a later one.
#[test]
fn client_join_in_training() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 2, ENDLESS, (2, 3));
    let at = cluster.until_fed(2, 2);
    cluster.join("w2");
    let joined = cluster.until_fed(3, at);
    assert!(joined > at);
    assert_eq!(ended(&cluster), [2, 3]);
}

/// The step that a member died in is completed by the others; a new member joins later.
#[test]
fn shutdown_node_in_training_and_complete_round() {
    let bench = Bench::new();
    let mut cluster = submitted(&bench, 3, ENDLESS, (2, 3));
    let at = cluster.until_fed(3, 2);
    cluster.fault("w1", "after_backward", "kill");
    cluster.until_dead("w1");
    let at = cluster.until_fed(2, at);
    cluster.join("w3");
    cluster.until_fed(3, at);
    assert_eq!(ended(&cluster), [3, 2, 3]);
}

/// The joiner's state can only come from a peer: the store holds nothing yet.
fn joiners_get_the_state_from_peers(joiners: &[&str]) {
    let bench = Bench::new();
    let world = 2 + joiners.len() as u64;
    let mut cluster = submitted(&bench, 2, ENDLESS, (2, world as u32));
    let at = cluster.until_fed(2, 2);
    for name in joiners {
        cluster.join(name);
    }
    cluster.until_fed(world, at);
    assert!(!bench.path("store/default/run/words/steps").exists(), "nothing is in the store yet");
    // Whoever is ready first need not wait for the others: there may be a generation in between.
    let worlds = ended(&cluster);
    assert!(worlds.is_sorted() && worlds.first() == Some(&2) && worlds.last() == Some(&world), "{worlds:?}");
    let feeds = cluster.feeds();
    assert!(feeds.resumed_from_memory(), "{:?}", feeds.sources());
}

#[test]
fn client_join_in_training_and_get_model_using_p2p() {
    joiners_get_the_state_from_peers(&["w2"]);
}

#[test]
fn two_clients_join_in_training_and_get_model_using_p2p() {
    joiners_get_the_state_from_peers(&["w2", "w3"]);
}
