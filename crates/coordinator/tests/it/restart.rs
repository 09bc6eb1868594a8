//! A coordinator that stops and comes back.

use pleach_base::code;
use pleach_proto::status::from_status;
use pleach_proto::v1::JobState;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{Assignment, Drained, Finished, StopMode};

use crate::cluster::{Cluster, all};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_and_run_again_under_a_new_term() {
    let mut cluster = Cluster::start().await;
    for name in ["done", "cut"] {
        let spec = cluster.spec(name, 1, 1);
        cluster.submit(spec).await.unwrap();
    }
    let mut a = cluster.worker("a", 1).await;
    let at = a.assignment().await;
    a.ready(&at).await;
    a.step(&at, 8, 0.5).await;
    a.durable(&at, 8).await;
    a.finish(&at).await;
    cluster.until("done", JobState::Succeeded).await;
    let old = a.assignment().await;
    a.ready(&old).await;
    a.step(&old, 1, 0.5).await;
    a.durable(&old, 1).await;
    let before = cluster.until("cut", JobState::Running).await;

    cluster.restart().await;
    let done = cluster.get("done").await.unwrap();
    assert_eq!((done.state(), done.tasks[0].durable_step), (JobState::Succeeded, 8));
    let cut = cluster.get("cut").await.unwrap();
    assert_eq!((cut.state(), cut.tasks[0].step, cut.tasks[0].durable_step), (JobState::Running, 1, 1));
    assert_eq!(cut.created_unix_ms, before.created_unix_ms);
    let spec = cluster.spec("cut", 1, 1);
    assert!(!cluster.submit(spec).await.unwrap().1, "still the same job");

    let mut a = cluster.worker("a", 1).await;
    let same = a.assignment().await;
    assert_eq!((same.term, same.generation), (old.term, old.generation), "the gang of the leader before goes on");
    a.finish(&old).await;
    let spec = cluster.spec("next", 1, 1);
    cluster.submit(spec).await.unwrap();
    let next = a.assignment().await;
    assert!(next.term > old.term);
    let stale = Assignment { term: old.term, ..next.clone() };
    let refused = a.report(&stale, Report::Finished(Finished {})).await.unwrap_err();
    assert_eq!(from_status(&refused).code(), code::FENCED, "a fence of the term before");
    cluster.until("cut", JobState::Succeeded).await;

    let seen = all(cluster.watch("cut", 0).await).await;
    let seqs: Vec<_> = seen.iter().map(|update| update.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "one history over both terms");
    let kinds: Vec<_> = seen
        .iter()
        .filter_map(
            |update| if let Some(Update::Event(event)) = &update.update { Some(event.kind.as_str()) } else { None },
        )
        .collect();
    assert!(kinds.contains(&"CoordinatorRestarted") && kinds.last() == Some(&"Succeeded"), "{kinds:?}");
}

/// As after a kill: the file is what had been brought to the disk, without a word of farewell.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_a_watcher_may_have_seen_are_not_given_out_again() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    let at = a.assignment().await;
    a.ready(&at).await;
    for step in 1..=8 {
        a.step(&at, step, 0.5).await;
    }
    let state = cluster.folder.path().join("state.redb");
    let killed = std::fs::read(&state).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let seen = cluster.get("j").await.unwrap().last_seq;
    cluster.stop().await;
    std::fs::write(&state, killed).unwrap();
    cluster.restart().await;
    cluster.cancel("j").await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    a.report(&at, Report::Drained(Drained {})).await.unwrap();
    let rest = all(cluster.watch("j", seen).await).await;
    let kinds: Vec<_> = rest
        .iter()
        .filter_map(
            |update| if let Some(Update::Event(event)) = &update.update { Some(event.kind.as_str()) } else { None },
        )
        .collect();
    assert_eq!(kinds, ["CoordinatorRestarted", "Draining", "Reattached", "Cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_being_cancelled_does_not_come_back_to_life() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    let at = a.assignment().await;
    a.ready(&at).await;
    assert_eq!(cluster.cancel("j").await.unwrap().state(), JobState::Stopping);
    cluster.restart().await;
    assert_eq!(cluster.get("j").await.unwrap().state(), JobState::Stopping, "its worker may still drain");
    let mut a = cluster.worker("a", 1).await;
    assert_eq!(a.stop().await.mode(), StopMode::Drain);
    a.report(&at, Report::Drained(Drained {})).await.unwrap();
    cluster.until("j", JobState::Cancelled).await;
}
