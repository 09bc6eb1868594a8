//! A worker is killed; the job ends all the same, with the same bits.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleach_testkit::process::Process;

use crate::support::{Bench, LONG, adapter, finished};

/// The processes that a process has started and that still run.
fn children(parent: u32) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // `pid (name) state parent ...`; the name may hold anything.
            let after: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            matches!(after.as_slice(), [state, ppid, ..] if *state != "Z" && *ppid == parent.to_string())
        })
        .collect();
    found.sort_unstable();
    found
}

fn kill_a_worker(train: &Process, which: usize) {
    let workers = children(train.pid());
    assert_eq!(workers.len(), 2, "two workers run: {}", train.text());
    kill(Pid::from_raw(workers[which] as i32), Signal::SIGKILL).unwrap();
}

#[test]
fn a_killed_worker_costs_no_sample_and_no_bit() {
    let bench = Bench::new();
    let mut whole = bench.spec(120);
    whole["checkpoint"]["store"] = bench.path("whole").to_str().unwrap().into();
    let whole = bench.trained(&bench.job("whole", &whole), &[]);
    let expected = adapter(&bench.path("whole"), &whole);

    for (which, name) in ["first-killed", "second-killed"].into_iter().enumerate() {
        let train = bench.train(&bench.job(name, &bench.spec(120)), &[]);
        train.wait_for("step 12/120", LONG).unwrap();
        kill_a_worker(&train, which);
        let job = finished(train);
        assert_eq!(job["state"], "succeeded", "{job}");
        assert!(job["restarts"].as_u64().unwrap() >= 1, "{job}");
        assert_eq!(job["tasks"][0]["step"], 120);
        assert!(adapter(&bench.path("store"), &job) == expected, "{name}: another adapter than without a death");
    }
}

#[test]
fn workers_do_not_outlive_their_command() {
    let bench = Bench::new();
    let mut train = bench.train(&bench.job("orphans", &bench.spec(5000)), &[]);
    train.wait_for("step 2/5000", LONG).unwrap();
    let workers = children(train.pid());
    assert_eq!(workers.len(), 2);
    kill(Pid::from_raw(train.pid() as i32), Signal::SIGKILL).unwrap();
    train.wait(LONG).unwrap();
    let all_gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        workers.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap())
    });
    assert!(all_gone, "orphaned workers still run");
}
