//! Uploading processes that are killed or stopped anywhere, while another process reads all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use pleach_base::code;
use pleach_base::rng::Key;
use pleach_testkit::process::Process;
use rstest::rstest;

use crate::actors::{PATIENCE, Role, STEPS, is_one_step, start, stop_file};
use crate::backend::{Backend, Kind, fence, snapshot};
use crate::kills::check_whole;

/// Ends the reader and returns how often it read a step.
fn end_reader(backend: &Backend, mut reader: Process) -> u64 {
    std::fs::write(stop_file(backend), "").unwrap();
    assert!(reader.wait(PATIENCE).unwrap().success(), "{}", reader.text());
    let line = reader.wait_for("@ (read|torn)", PATIENCE).unwrap();
    let words: Vec<&str> = line.split("@ read ").nth(1).unwrap_or_else(|| panic!("{line}")).split(' ').collect();
    words[0].parse().unwrap()
}

/// The process has stopped itself before a write, or has come to its end.
async fn at_gate(uploader: Process) -> (Process, bool) {
    tokio::task::spawn_blocking(move || {
        let line = uploader.wait_for("@ (gate|done|ended)", PATIENCE).unwrap();
        assert!(!line.contains("@ ended"), "{line}");
        // It says so before it stops: a signal to go on must not come first.
        while line.contains("@ gate") && !is_stopped(uploader.pid()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        (uploader, line.contains("@ gate"))
    })
    .await
    .unwrap()
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

/// Every write of a run of fence, commits and retention is the place of one kill; each next process resumes.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_puts_no_reader_sees_half_a_step(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let reader = start(&backend, Role::Reader);
    let mut kills = 0;
    for gate in 1.. {
        let uploader = start(&backend, Role::Uploader { generation: gate, gate, kib: 64 });
        let (mut uploader, stopped) = at_gate(uploader).await;
        if !stopped {
            break;
        }
        uploader.kill().unwrap();
        kills += 1;
        check_whole(&backend.task()).await;
    }
    assert!(kills > 20, "only {kills} writes: the work has become too small");
    let newest = backend.task().newest().await.unwrap().unwrap();
    assert!(newest.step.unwrap().0 >= STEPS);
    assert!(is_one_step(&newest, &backend.task().read(&newest).await.unwrap()));
    assert!(end_reader(&backend, reader) > kills, "the reader read all the time");
}

/// Whether a PUT is under way: on folders its bytes are in a file whose name says that it is not done.
fn is_inside_a_put(backend: &Backend) -> bool {
    match &backend.server {
        Some(server) => server.is_receiving(),
        None => unfinished(backend) > 0,
    }
}

fn unfinished(backend: &Backend) -> usize {
    backend.objects().keys().filter(|key| key.contains('#')).count()
}

/// Large bodies, and a kill as soon as one of them is on its way.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_inside_a_put_no_reader_sees_half_a_step(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    const WANTED: usize = 5;
    let backend = Backend::start(kind).await;
    let reader = start(&backend, Role::Reader);
    let mut cut = 0;
    for round in 1..=100 {
        let uploader = start(&backend, Role::Uploader { generation: round, gate: 1, kib: 8 << 10 });
        let (mut uploader, _) = at_gate(uploader).await;
        uploader.resume().unwrap();
        // Not always the first body that is large.
        let mut skip = Key::seed(7).with(round).rng().below(60);
        while uploader.exit_status().unwrap().is_none() && (skip > 0 || !is_inside_a_put(&backend)) {
            skip = skip.saturating_sub(1);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = uploader.kill();
        cut += unfinished(&backend);
        remove_unfinished(&backend);
        check_whole(&backend.task()).await;
        if cut.max(backend.server.as_ref().map_or(0, |server| server.cut_puts() as usize)) >= WANTED {
            break;
        }
    }
    let cut = backend.server.as_ref().map_or(cut, |server| server.cut_puts() as usize);
    assert!(cut >= WANTED, "{cut} PUTs were cut off");
    let mut last = backend.task().fence(fence(1, 999)).await.unwrap();
    let next = backend.task().newest().await.unwrap().map_or(0, |entry| entry.step.unwrap().0) + 1;
    last.commit(&snapshot(next, 999_u64 as u8)).await.unwrap();
    check_whole(&backend.task()).await;
    end_reader(&backend, reader);
}

/// So that the next round sees its own.
fn remove_unfinished(backend: &Backend) {
    for key in backend.objects().into_keys().filter(|key| key.contains('#')) {
        std::fs::remove_file(backend.root.join("acme/desk/tone").join(key)).unwrap();
    }
}

/// Everything that readers can reach: the log, and the files of what it reaches.
async fn reachable(backend: &Backend) -> BTreeMap<String, Vec<u8>> {
    let mut objects = backend.objects();
    let reached = backend.task().steps().await.unwrap();
    let folders: Vec<_> = reached.into_iter().filter_map(|entry| entry.folder).collect();
    objects.retain(|key, _| key.starts_with("log/") || folders.iter().any(|f| key.starts_with(&format!("{f}/"))));
    objects
}

/// A process sleeps before one of its writes; a newer generation takes over, commits and retains; then it wakes up.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uploader_that_wakes_up_behind_a_newer_fence_writes_nothing_reachable(
    #[values(Kind::Folder, Kind::S3)] kind: Kind,
) {
    let mut woken = 0;
    for gate in 2.. {
        let backend = Backend::start(kind).await;
        let stale = start(&backend, Role::Uploader { generation: 1, gate, kib: 16 });
        let (mut stale, stopped) = at_gate(stale).await;
        if !stopped {
            break;
        }
        let newer = start(&backend, Role::Uploader { generation: 2, gate: 0, kib: 16 });
        at_gate(newer).await;
        let before = reachable(&backend).await;
        let newest = backend.task().newest().await.unwrap();
        stale.signal(Signal::SIGCONT).unwrap();
        let status = tokio::task::spawn_blocking(move || (stale.wait(PATIENCE), stale.text())).await.unwrap();
        // Only one that slept before its very last writes, which no reader follows, has nothing left to be refused.
        let told = format!("@ ended {}", code::STORE_FENCED.id);
        assert!(status.1.contains(&told) || status.1.contains("@ done"), "gate {gate}: {}", status.1);
        woken += u64::from(status.1.contains(&told));
        assert_eq!(reachable(&backend).await, before, "gate {gate}: what counts has changed");
        assert_eq!(backend.task().newest().await.unwrap(), newest, "gate {gate}");
        check_whole(&backend.task()).await;
    }
    assert!(woken > 12, "only {woken} were refused");
}
