//! Asked to stop, a job finishes its step, stores it, and goes on from there when the command is given again.

use std::time::Duration;

use crate::support::{Bench, LONG, adapter, finished};

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    let mut whole = bench.spec(90);
    whole["checkpoint"]["store"] = bench.path("whole").to_str().unwrap().into();
    let whole = bench.trained(&bench.job("whole", &whole), &[]);

    let mut spec = bench.spec(90);
    spec["checkpoint"]["every"] = 1000.into();
    let job = bench.job("drained", &spec);
    let mut train = bench.train(&job, &[]);
    train.wait_for("step 7/90", LONG).unwrap();
    train.terminate().unwrap();
    let status = train.wait(LONG).unwrap();
    assert!(!status.success(), "an interrupted job is not done: {}", train.text());
    assert!(train.text().contains("goes on from the newest checkpoint"), "{}", train.text());
    // No checkpoint was due: the one that is there was made by the drain.
    let log = std::fs::read_dir(bench.path("store/default/drained/words/steps")).unwrap();
    assert_eq!(log.count(), 1, "{}", train.text());

    let job = finished(bench.train(&job, &[]));
    assert_eq!(job["tasks"][0]["step"], 90);
    assert!(adapter(&bench.path("store"), &job) == adapter(&bench.path("whole"), &whole), "another adapter");
}

#[test]
fn a_store_outlives_the_coordinators_state() {
    let bench = Bench::new();
    let job = bench.job("again", &bench.spec(10));
    let train = bench.train(&job, &[]);
    train.wait_for("step 2/10", LONG).unwrap();
    let first = finished(train);
    std::fs::remove_dir_all(bench.path("state")).unwrap();
    // Terms of a new state follow the clock in seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let second = finished(bench.train(&job, &[]));
    assert_eq!(second["state"], "succeeded", "{second}");
    assert!(
        adapter(&bench.path("store"), &second) == adapter(&bench.path("store"), &first),
        "resumed, not trained anew"
    );
}
