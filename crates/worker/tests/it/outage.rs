//! Coordinators that stand by, die and come back elsewhere.

use std::net::TcpListener;
use std::time::Duration;

use pleach_proto::v1::report_request::Report;

use crate::coordinator::{Coordinator, Said};
use crate::process::{Worker, commits, form, recorded, registered};
use crate::worker::{ENDLESS, job};

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_found_among_the_dead_and_by_name() {
    let (dead, gone) = listener();
    drop(dead);
    let (standing, leading) = (Coordinator::default(), Coordinator::default());
    let (first, second) = (listener(), listener());
    standing.serve(from_std(first.0));
    // First nobody leads, then the other one, which the worker was not told of.
    standing.0.lock().unwrap().leader = Some(String::new());
    leading.serve(from_std(second.0));
    let _worker = Worker::start(&format!("{gone},{}", first.1), "w0", &[]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    standing.0.lock().unwrap().leader = Some(second.1);
    leading.worker("w0").await;
    assert!(standing.0.lock().unwrap().registered.is_empty());
}

fn from_std(listener: TcpListener) -> tokio::net::TcpListener {
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_outlives_its_coordinator_and_every_step_reaches_the_next_one_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Coordinator::default(), Coordinator::default());
    let (at, later) = (listener(), listener());
    let runtime = first.serve_apart(at.0);
    let _workers: Vec<_> =
        ["w0", "w1"].iter().map(|name| Worker::start(&format!("{},{}", at.1, later.1), name, &[])).collect();
    let both = registered(&first, &["w0", "w1"]).await;
    form(&first, &job(folder.path(), ENDLESS), 1, &both);
    recorded(&first, 1, 3).await;
    runtime.shutdown_background();
    // Long enough for many steps; the port of the second takes connections and says nothing meanwhile.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = commits(&first.0.lock().unwrap()).len();
    second.serve(from_std(later.0));
    registered(&second, &["w0", "w1"]).await;
    recorded(&second, 1, 20).await;
    let known: Vec<u64> = commits(&second.0.lock().unwrap()).iter().map(|record| record.step).collect();
    // The last report to the first one may have been taken though its answer was lost: then it is told again.
    assert!((1..=before as u64 + 1).contains(&known[0]), "{} after {before}", known[0]);
    let expected: Vec<u64> = (known[0]..known[0] + known.len() as u64).collect();
    assert_eq!(known, expected);
    let said = second.0.lock().unwrap();
    let largest = |said: &Said| {
        let records = said.reports.iter().filter_map(|report| match &report.report {
            Some(Report::Commits(commits)) => Some(commits.records.len()),
            _ => None,
        });
        records.max().unwrap_or_default()
    };
    assert!(largest(&said) > 1, "what gathered goes together");
    let parts = said.sessions.iter().filter(|(_, message)| message.job == "tiny");
    assert!(parts.clone().count() > 0 && parts.clone().all(|(_, m)| (m.term, m.generation) == (1, 1)));
    assert!(!said.reports.iter().any(|r| matches!(r.report, Some(Report::Failed(_) | Report::Drained(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_holds_the_session_and_says_nothing_is_left() {
    let (mute, other) = (Coordinator::default(), Coordinator::default());
    let (first, second) = (listener(), listener());
    mute.0.lock().unwrap().mute = true;
    mute.serve(from_std(first.0));
    other.serve(from_std(second.0));
    let _worker = Worker::start(&format!("{},{}", first.1, second.1), "w0", &[]);
    mute.worker("w0").await;
    other.worker("w0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crew_ends_with_the_command_that_started_it() {
    let coordinator = Coordinator::default();
    let address = format!("http://{}", coordinator.start().await);
    // A shell stands for the command: it starts a worker, says its process id, and is killed.
    let script = format!(
        "{} --coordinator {address} --name w0 --threads 1 --crew-of $$ & echo $!; wait",
        env!("CARGO_BIN_EXE_pleach-worker")
    );
    let mut shell =
        std::process::Command::new("sh").args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut lines = std::io::BufReader::new(shell.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    let worker = format!("/proc/{}", line.trim());
    coordinator.worker("w0").await;
    assert!(std::path::Path::new(&worker).exists());
    shell.kill().unwrap();
    shell.wait().unwrap();
    let gone = async {
        // An orphan is a zombie until its new parent looks; that counts as gone too.
        let runs = || std::fs::read_to_string(format!("{worker}/status")).is_ok_and(|text| !text.contains("State:\tZ"));
        while runs() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the worker ends");
}
