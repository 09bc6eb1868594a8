//! The harness with a small fleet against the built coordinator.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pleach_bench::control::{Plan, State, run};
use pleach_bench::goals::goals;
use pleach_testkit::process::binary;

fn small(state: State) {
    let program = binary("pleach").unwrap();
    let (each, rest) = (Duration::from_secs(2), Duration::from_millis(100));
    let report = run(&Plan { workers: 40, jobs: 8, each, rest, state, program }, &|_| {}).unwrap();
    let (beside, commits) = (report.heartbeats_beside_commits.as_ref().unwrap(), report.commits.as_ref().unwrap());
    for heartbeats in [&report.heartbeats, beside] {
        // Each worker beats twice, once more or less at the edges.
        assert!((40..=120).contains(&heartbeats.answered), "{report}");
        assert!(heartbeats.memory_mib > 1.0 && report.peak_mib >= heartbeats.memory_mib, "{report}");
    }
    assert_eq!(goals(&report).len(), 3);
    assert!(commits.answered >= 8, "every job commits: {report}");
    assert!(commits.p50_ms > 0.0 && commits.p50_ms <= commits.p99_ms && commits.p99_ms <= commits.max_ms, "{report}");
}

#[test]
fn a_small_fleet_on_redb() {
    small(State::Redb);
}

#[test]
fn a_small_fleet_on_etcd() {
    small(State::Etcd);
}
