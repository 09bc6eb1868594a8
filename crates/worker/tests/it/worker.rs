//! From registration to leaving, with real training in between.

use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use pleach_base::shutdown::Shutdown;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{Assignment, RegisterRequest, SessionRequest, Stop, StopMode, Times};
use pleach_worker::cli::Args;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::coordinator::{Coordinator, heartbeat};

type Running = (Shutdown, JoinHandle<pleach_base::Result<()>>);

fn worker(address: &str, name: &str, more: &[&str]) -> Running {
    let coordinator = format!("http://{address}");
    let fixed = ["pleach-worker", "--coordinator", &coordinator, "--name", name, "--threads", "1"];
    let args = Args::parse_from(fixed.iter().chain(more));
    let shutdown = Shutdown::default();
    (shutdown.clone(), tokio::spawn(pleach_worker::run(args, shutdown)))
}

pub(crate) fn job(folder: &Path, epochs: u32) -> Value {
    let data = folder.join("train.jsonl");
    let row =
        |row: usize| format!("{}\n", json!({"input_ids": (0..2 + row % 7).map(|at| row + at).collect::<Vec<_>>()}));
    std::fs::write(&data, (0..16).map(row).collect::<String>()).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parity/llama-lora/model");
    json!({
        "apiVersion": "pleach.dev/v1", "kind": "Job", "metadata": {"name": "tiny"},
        "spec": {
            "backbone": {"path": model},
            "data": {"source": data, "task": "causal_lm", "max_length": 32},
            "train": {"global_batch": 8, "lanes": 2, "epochs": epochs, "optimizer": {"lr": 1e-3}},
            "tasks": [{"name": "a", "adapter": {"method": "lora", "r": 2, "target_modules": ["q_proj"]}}],
            "eval": {"source": data},
            "checkpoint": {"store": folder.join("store"), "every": 1_000_000}
        }
    })
}

/// More steps than any test waits for.
pub(crate) const ENDLESS: u32 = 1_000_000;

pub(crate) fn assignment(job: &Value, generation: u64, rank: u32, world: u32, leader: &RegisterRequest) -> Command {
    Command::Assignment(Assignment {
        heads: Vec::new(),
        tenant: "default".into(),
        job: "tiny".into(),
        spec_json: job.to_string(),
        term: 1,
        generation,
        rank,
        world,
        rendezvous_host: leader.host.clone(),
        rendezvous_port: leader.rendezvous_port,
        members: Vec::new(),
    })
}

pub(crate) fn stop(generation: u64, mode: StopMode) -> Command {
    Command::Stop(Stop {
        tenant: "default".into(),
        job: "tiny".into(),
        generation,
        mode: mode.into(),
        reason: "the test says so".into(),
        term: 1,
    })
}

async fn steps_of(coordinator: &Coordinator, generation: u64, at_least: usize) {
    coordinator
        .wait("steps", |said| {
            let steps = said.sessions.iter().filter(
                |(_, message)| matches!(&message.message, Some(Message::Step(row)) if row.generation == generation),
            );
            (steps.count() >= at_least).then_some(())
        })
        .await;
}

fn times(message: &SessionRequest) -> Option<&Times> {
    match &message.message {
        Some(Message::Times(times)) => Some(times),
        _ => None,
    }
}

async fn ended(running: Running) {
    tokio::time::timeout(Duration::from_secs(30), running.1).await.expect("the worker leaves").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_train_a_job_and_leave() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    coordinator.0.lock().unwrap().refuse_reports = 3;
    let address = coordinator.start().await.to_string();
    let workers = ["w0", "w1"].map(|name| worker(&address, name, &["--once"]));
    let leader = coordinator.worker("w0").await;
    coordinator.worker("w1").await;
    let job = job(folder.path(), 2);
    for (rank, name) in ["w0", "w1"].iter().enumerate() {
        coordinator.send(name, assignment(&job, 7, rank as u32, 2, &leader));
    }
    for name in ["w0", "w1"] {
        coordinator.report(name, "Ready", |report| matches!(report, Report::Ready(_)).then_some(())).await;
        coordinator.report(name, "Finished", |report| matches!(report, Report::Finished(_)).then_some(())).await;
    }
    for running in workers {
        ended(running).await;
    }
    let said = coordinator.0.lock().unwrap();
    let durable = |report: &Report| if let Report::Durable(durable) = report { Some(durable.clone()) } else { None };
    let stored: Vec<_> = said.reports.iter().filter_map(|r| r.report.as_ref().and_then(durable)).collect();
    assert_eq!((stored.len(), stored[0].step), (1, 4));
    assert!(folder.path().join("store").join(&stored[0].folder).join("adapter_model.safetensors").is_file());
    let steps: Vec<_> = said.sessions.iter().filter(|(_, m)| matches!(m.message, Some(Message::Step(_)))).collect();
    assert_eq!(steps.len(), 4);
    assert!(steps.iter().all(|(worker, message)| worker == "w0" && message.job == "tiny" && message.generation == 7));
    let evals = said.reports.iter().filter(|r| matches!(r.report, Some(Report::Eval(_)))).count();
    assert_eq!(evals, 2);
    for (rank, name) in ["w0", "w1"].iter().enumerate() {
        let told = said.sessions.iter().filter(|(worker, message)| worker == name && message.generation == 7);
        let times: Vec<_> = told.filter_map(|(_, message)| times(message)).collect();
        assert!(times.iter().all(|times| times.rank == rank as u32), "{times:?}");
        let of: Vec<_> = times.iter().flat_map(|times| &times.steps).map(|step| step.step).collect();
        assert_eq!(of, [1, 2, 3, 4], "every rank tells where the time of each step went");
    }
    let order: Vec<_> = said.reports.iter().filter(|r| r.worker == "w0").map(|r| r.report_seq).collect();
    assert!(order.is_sorted() && order[0] == 1, "{order:?}");
    let beats = said.sessions.iter().filter_map(|(_, message)| heartbeat(message));
    assert!(beats.clone().any(|beat| !beat.idle) && beats.map(|beat| beat.progress).max() > Some(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_carried_out_is_not_carried_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let running = worker(&address, "w0", &[]);
    let leader = coordinator.worker("w0").await;
    let job = job(folder.path(), 2);
    coordinator.send("w0", assignment(&job, 3, 0, 1, &leader));
    coordinator.report("w0", "Finished", |report| matches!(report, Report::Finished(_)).then_some(())).await;
    coordinator.send("w0", assignment(&job, 3, 0, 1, &leader));
    let beats = |said: &crate::coordinator::Said| said.sessions.iter().filter(|(_, m)| heartbeat(m).is_some()).count();
    let now = beats(&coordinator.0.lock().unwrap());
    coordinator.wait("time to obey", |said| (beats(said) > now + 3).then_some(())).await;
    coordinator.send("w0", assignment(&job, 4, 0, 1, &leader));
    let ready = |said: &crate::coordinator::Said| -> Vec<u64> {
        let ready = said.reports.iter().filter(|r| matches!(r.report, Some(Report::Ready(_))));
        ready.map(|r| r.generation).collect()
    };
    let both = coordinator.wait("the next generation", |said| Some(ready(said)).filter(|all| all.len() > 1)).await;
    assert_eq!(both, [3, 4], "generation 3 was made once");
    running.0.request("asked to terminate (SIGTERM)");
    ended(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_leave_finishes_the_step_and_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let running = worker(&address, "w0", &[]);
    let leader = coordinator.worker("w0").await;
    coordinator.send("w0", assignment(&job(folder.path(), ENDLESS), 1, 0, 1, &leader));
    steps_of(&coordinator, 1, 3).await;
    running.0.request("asked to terminate (SIGTERM)");
    ended(running).await;
    let said = coordinator.0.lock().unwrap();
    let reports: Vec<_> = said.reports.iter().filter_map(|report| report.report.as_ref()).collect();
    assert!(matches!(reports.last(), Some(Report::Drained(_))), "{reports:?}");
    assert!(reports.iter().any(|report| matches!(report, Report::Durable(durable) if durable.step >= 3)));
    assert!(said.sessions.iter().filter_map(|(_, message)| heartbeat(message)).any(|beat| beat.draining));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_silent_and_the_next_generation_follows() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let running = worker(&address, "w0", &[]);
    let leader = coordinator.worker("w0").await;
    let endless = job(folder.path(), ENDLESS);
    coordinator.send("w0", assignment(&endless, 1, 0, 1, &leader));
    steps_of(&coordinator, 1, 2).await;
    // A stop of another generation is not ours; a newer assignment ends the older one by itself.
    coordinator.send("w0", stop(9, StopMode::Abort));
    coordinator.send("w0", assignment(&endless, 2, 0, 1, &leader));
    steps_of(&coordinator, 2, 2).await;
    coordinator.send("w0", stop(2, StopMode::Abort));
    coordinator
        .wait("idle", |said| {
            let beat = said.sessions.iter().rev().find_map(|(_, message)| heartbeat(message))?;
            beat.idle.then_some(())
        })
        .await;
    coordinator.send("w0", assignment(&endless, 3, 0, 1, &leader));
    steps_of(&coordinator, 3, 2).await;
    coordinator.send("w0", stop(3, StopMode::Drain));
    coordinator.report("w0", "Drained", |report| matches!(report, Report::Drained(_)).then_some(())).await;
    running.0.request("over");
    ended(running).await;
    let said = coordinator.0.lock().unwrap();
    assert!(said.reports.iter().all(|report| !matches!(report.report, Some(Report::Failed(_) | Report::Finished(_)))));
    let drained: Vec<_> = said.reports.iter().filter(|r| matches!(r.report, Some(Report::Drained(_)))).collect();
    assert_eq!((drained.len(), drained[0].generation), (1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_permanent_and_the_worker_stays() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::default();
    let address = coordinator.start().await.to_string();
    let running = worker(&address, "w0", &[]);
    let leader = coordinator.worker("w0").await;
    let mut bad = job(folder.path(), 1);
    bad["spec"]["backbone"]["path"] = json!(folder.path().join("nowhere"));
    coordinator.send("w0", assignment(&bad, 1, 0, 1, &leader));
    let failed = |generation: u64| {
        coordinator.wait("a failure", move |said| {
            said.reports.iter().find(|report| report.generation == generation).and_then(|report| match &report.report {
                Some(Report::Failed(failed)) => Some((failed.permanent, failed.failure.clone()?.code)),
                _ => None,
            })
        })
    };
    assert_eq!(failed(1).await, (true, "PL0301".to_owned()));
    // A spec that is no spec fails the same way, before any thread starts.
    let Command::Assignment(mut broken) = assignment(&bad, 2, 0, 1, &leader) else { unreachable!() };
    broken.spec_json = "{".into();
    coordinator.send("w0", Command::Assignment(broken));
    assert_eq!(failed(2).await, (true, "PL0101".to_owned()));
    coordinator.send("w0", assignment(&job(folder.path(), 1), 3, 0, 1, &leader));
    coordinator.report("w0", "Finished", |report| matches!(report, Report::Finished(_)).then_some(())).await;
    running.0.request("over");
    ended(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_for_its_coordinator_and_outlives_a_short_silence() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let running = worker(&address.to_string(), "w0", &["--grace", "1"]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!running.1.is_finished());
    let coordinator = Coordinator::default();
    let folder = tempfile::tempdir().unwrap();
    coordinator.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    let leader = coordinator.worker("w0").await;
    coordinator.send("w0", assignment(&job(folder.path(), ENDLESS), 1, 0, 1, &leader));
    steps_of(&coordinator, 1, 1).await;
    // From now on it acknowledges nothing, so after the grace time the worker stops by itself, with a checkpoint.
    coordinator.0.lock().unwrap().mute = true;
    coordinator.report("w0", "Drained", |report| matches!(report, Report::Drained(_)).then_some(())).await;
    running.0.request("over");
    ended(running).await;
    let said = coordinator.0.lock().unwrap();
    assert!(said.reports.iter().any(|report| matches!(report.report, Some(Report::Durable(_)))));
}
