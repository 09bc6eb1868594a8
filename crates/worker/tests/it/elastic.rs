//! Getting ready, yielding, and going on after members died, stopped or left: real processes, the test is the scheduler.

use std::time::Duration;

use nix::sys::signal::Signal;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::{GangFailed, ReportRequest, StopMode};
use serde_json::json;

use crate::coordinator::{Coordinator, Said, heartbeat};
use crate::process::{Worker, fed, form, gapless, members, prepare, recorded, registered};
use crate::worker::{ENDLESS, job, stop};

fn reports_of(said: &Said, worker: &str, generation: u64, is: impl Fn(&Report) -> bool) -> Vec<ReportRequest> {
    let own = said.reports.iter().filter(|report| report.worker == worker && report.generation == generation);
    own.filter(|report| report.report.as_ref().is_some_and(&is)).cloned().collect()
}

async fn report(coordinator: &Coordinator, worker: &str, generation: u64, is: impl Fn(&Report) -> bool) -> Report {
    let found = coordinator
        .wait(&format!("a report of {worker} in generation {generation}"), |said| {
            reports_of(said, worker, generation, &is).pop()
        })
        .await;
    found.report.unwrap()
}

async fn drained(coordinator: &Coordinator, worker: &str, generation: u64) {
    report(coordinator, worker, generation, |report| matches!(report, Report::Drained(_))).await;
}

async fn failed(coordinator: &Coordinator, worker: &str, generation: u64) -> GangFailed {
    let is = |report: &Report| matches!(report, Report::Failed(_));
    let Report::Failed(failed) = report(coordinator, worker, generation, is).await else { unreachable!() };
    failed
}

fn start(address: &str, names: &[&str], more: &[&str]) -> Vec<Worker> {
    names.iter().map(|name| Worker::start(&format!("http://{address}"), name, more)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_gets_ready_before_it_joins_and_says_what_keeps_it_from_that() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let _workers = start(&address, &["w0"], &[]);
    let own = registered(&coordinator, &["w0"]).await;
    let job = job(folder.path(), ENDLESS);
    // Of the gang that it could join, one does not answer; it is a member itself, which is not asked.
    let mut gang = members(&[own[0].clone(), own[0].clone()]);
    gang[1].incarnation += 1;
    coordinator.send("w0", prepare(&job, 4, gang));
    let told = failed(&coordinator, "w0", 4).await;
    assert_eq!((told.permanent, told.suspects), (false, vec![1]));
    // Data that is not there is not there for anybody.
    let mut bad = job.clone();
    bad["spec"]["data"]["source"] = json!(folder.path().join("nowhere.jsonl"));
    coordinator.send("w0", prepare(&bad, 5, members(&own)));
    assert!(failed(&coordinator, "w0", 5).await.permanent);
    coordinator.send("w0", prepare(&job, 6, members(&own)));
    report(&coordinator, "w0", 6, |report| matches!(report, Report::Prepared(_))).await;
    let busy = |said: &Said| said.sessions.iter().filter_map(|(_, m)| heartbeat(m)).filter(|beat| !beat.idle).count();
    assert_eq!(busy(&coordinator.0.lock().unwrap()), 0, "getting ready is no part in a job");
    form(&coordinator, &job, 7, &own);
    recorded(&coordinator, 7, 3).await;
    gapless(&coordinator);
    let computed = |said: &Said| {
        said.sessions.iter().filter_map(|(_, m)| heartbeat(m)).any(|beat| beat.compute_seconds > 0.0).then_some(())
    };
    coordinator.wait("a heartbeat with the seconds that a step took", computed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_that_yields_goes_on_in_another_shape_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let logs = folder.path().join("logs");
    let _workers = start(&address, &["w0", "w1"], &["--feed-log", logs.to_str().unwrap()]);
    let both = registered(&coordinator, &["w0", "w1"]).await;
    let job = job(folder.path(), ENDLESS);
    form(&coordinator, &job, 1, &both[..1]);
    recorded(&coordinator, 1, 3).await;
    coordinator.send("w0", stop(1, StopMode::Yield));
    drained(&coordinator, "w0", 1).await;
    // The other one has nothing; the first one, not rank 0 any more, gives it the state.
    form(&coordinator, &job, 2, &[both[1].clone(), both[0].clone()]);
    recorded(&coordinator, 2, 3).await;
    ["w0", "w1"].iter().for_each(|name| coordinator.send(name, stop(2, StopMode::Yield)));
    drained(&coordinator, "w0", 2).await;
    drained(&coordinator, "w1", 2).await;
    gapless(&coordinator);
    let stored = coordinator.0.lock().unwrap().reports.iter().any(|r| matches!(r.report, Some(Report::Durable(_))));
    assert!(!stored, "a yield writes nothing");
    let lines = fed(&logs);
    let resumed: Vec<_> = lines.iter().filter(|line| line["kind"] == "resume" && line["generation"] == 2).collect();
    assert!(!resumed.is_empty() && resumed.iter().all(|line| line["source"] == "memory"), "{resumed:?}");
    assert!(lines.iter().filter(|line| line["kind"] == "fed").count() >= 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivors_name_the_dead_and_go_on_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let workers = start(&address, &["w0", "w1", "w2"], &[]);
    let all = registered(&coordinator, &["w0", "w1", "w2"]).await;
    let job = job(folder.path(), ENDLESS);
    form(&coordinator, &job, 1, &all);
    recorded(&coordinator, 1, 3).await;
    workers[0].signal(Signal::SIGKILL);
    for name in ["w1", "w2"] {
        let told = failed(&coordinator, name, 1).await;
        assert_eq!((told.permanent, told.suspects), (false, vec![0]), "{name}");
    }
    form(&coordinator, &job, 2, &all[1..]);
    recorded(&coordinator, 2, 3).await;
    // The last reports of the dead one may be lost; then its step was agreed on, and is recorded by the next generation.
    gapless(&coordinator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_member_is_named_while_the_gang_waits_and_while_it_forms() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let workers = start(&address, &["w0", "w1", "w2"], &[]);
    let all = registered(&coordinator, &["w0", "w1", "w2"]).await;
    let job = job(folder.path(), ENDLESS);
    form(&coordinator, &job, 1, &all);
    recorded(&coordinator, 1, 3).await;
    workers[2].signal(Signal::SIGSTOP);
    for name in ["w0", "w1"] {
        let is = |report: &Report| matches!(report, Report::Stalled(stalled) if stalled.suspects == [2]);
        report(&coordinator, name, 1, is).await;
    }
    // An order for the same members, one of which cannot come: whoever waits names it.
    ["w0", "w1"].iter().for_each(|name| coordinator.send(name, stop(1, StopMode::Abort)));
    form(&coordinator, &job, 2, &all);
    for name in ["w0", "w1"] {
        let told = failed(&coordinator, name, 2).await;
        assert_eq!((told.permanent, told.suspects), (false, vec![2]), "{name}: {:?}", told.failure);
    }
    form(&coordinator, &job, 3, &all[..2]);
    recorded(&coordinator, 3, 3).await;
    // When it wakes up, its orders are old: nothing of what it says is a record.
    workers[2].signal(Signal::SIGCONT);
    tokio::time::sleep(Duration::from_millis(500)).await;
    gapless(&coordinator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_terminated_leaves_the_state_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let mut workers = start(&address, &["w0", "w1"], &[]);
    let both = registered(&coordinator, &["w0", "w1"]).await;
    let job = job(folder.path(), ENDLESS);
    form(&coordinator, &job, 1, &both);
    recorded(&coordinator, 1, 3).await;
    workers[0].signal(Signal::SIGTERM);
    let drains = |said: &Said| {
        let mut own = said.sessions.iter().filter(|(name, _)| name == "w0").filter_map(|(_, m)| heartbeat(m));
        own.any(|beat| beat.draining).then_some(())
    };
    coordinator.wait("a heartbeat that asks to go", drains).await;
    ["w0", "w1"].iter().for_each(|name| coordinator.send(name, stop(1, StopMode::Yield)));
    drained(&coordinator, "w1", 1).await;
    assert!(workers.remove(0).ended().await.success());
    form(&coordinator, &job, 2, &both[1..]);
    recorded(&coordinator, 2, 3).await;
    gapless(&coordinator);
    assert!(!coordinator.0.lock().unwrap().reports.iter().any(|r| matches!(r.report, Some(Report::Durable(_)))));
    // The last one has nobody to leave it to.
    workers[0].signal(Signal::SIGTERM);
    report(&coordinator, "w1", 2, |report| matches!(report, Report::Durable(_))).await;
    assert!(workers.remove(0).ended().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_strikes_at_its_phase() {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let fault = folder.path().join("fault");
    let mut workers = start(&address, &["w0"], &["--fault-file", fault.to_str().unwrap()]);
    let own = registered(&coordinator, &["w0"]).await;
    let job = job(folder.path(), ENDLESS);
    form(&coordinator, &job, 1, &own);
    recorded(&coordinator, 1, 2).await;
    std::fs::write(folder.path().join("new"), "before_commit kill").unwrap();
    std::fs::rename(folder.path().join("new"), &fault).unwrap();
    assert_eq!(workers.remove(0).ended().await.signal(), Some(9));
    assert!(!fault.exists());
}

/// Milliseconds that `wait` takes.
async fn millis(wait: impl Future<Output = ()>) -> u128 {
    #[allow(clippy::disallowed_methods)]
    let begun = std::time::Instant::now();
    wait.await;
    begun.elapsed().as_millis()
}

/// `cargo test -p pleach-worker --test it timings -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints timings, asserts nothing"]
async fn timings() {
    for world in [2, 4, 8] {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), ENDLESS);
        let coordinator = Coordinator::default();
        let address = coordinator.start().await.to_string();
        let names: Vec<String> = (0..world).map(|rank| format!("w{rank}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut workers = Vec::new();
        let started = millis(async {
            workers = start(&address, &names, &[]);
            registered(&coordinator, &names).await;
        });
        let started = started.await;
        let all = registered(&coordinator, &names).await;
        let prepared = millis(async {
            names.iter().for_each(|name| coordinator.send(name, prepare(&job, 1, members(&all))));
            for name in &names {
                report(&coordinator, name, 1, |report| matches!(report, Report::Prepared(_))).await;
            }
        });
        let prepared = prepared.await;
        let ready = millis(async {
            form(&coordinator, &job, 2, &all);
            for name in &names {
                report(&coordinator, name, 2, |report| matches!(report, Report::Ready(_))).await;
            }
        });
        let ready = ready.await;
        recorded(&coordinator, 2, 5).await;
        workers[world - 1].signal(Signal::SIGKILL);
        let told = millis(async {
            for name in &names[..world - 1] {
                failed(&coordinator, name, 2).await;
            }
        });
        let told = told.await;
        let again = millis(async {
            form(&coordinator, &job, 3, &all[..world - 1]);
            recorded(&coordinator, 3, 1).await;
        });
        let again = again.await;
        println!(
            "{world} workers: started {started} ms, all prepared {prepared} ms, order to ready {ready} ms, killed to \
             all failures {told} ms, order to the first step of the survivors {again} ms"
        );
    }
}
