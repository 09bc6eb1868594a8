//! Workers come, go, hang, and are fenced.

use std::time::Duration;

use pleach_base::code;
use pleach_base::shutdown::Shutdown;
use pleach_coordinator::{Config, StateStore, serve};
use pleach_proto::status::from_status;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Order;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use pleach_proto::v1::{Drained, Failure, Finished, GangFailed, Heartbeat, JobState, Ready, SessionRequest, StopMode};

use crate::cluster::{Cluster, config, fast};
use crate::worker::Worker;

/// A job that trains on `a` and `b`, and their assignments.
async fn pair(cluster: &mut Cluster) -> (Worker, Worker, [pleach_proto::v1::Assignment; 2]) {
    let spec = cluster.spec("j", 1, 2);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    let mut b = cluster.worker("b", 1).await;
    let at = [a.assignment().await, b.assignment().await];
    a.ready(&at[0]).await;
    b.ready(&at[1]).await;
    cluster.until("j", JobState::Running).await;
    (a, b, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_means_a_new_generation_of_the_survivor() {
    let mut cluster = Cluster::start().await;
    let (mut a, b, at) = pair(&mut cluster).await;
    drop(b);
    let stop = a.stop().await;
    assert_eq!((stop.mode(), stop.generation), (StopMode::Abort, 1));
    assert!(stop.reason.contains("b#1 was lost"), "{}", stop.reason);
    let next = a.assignment().await;
    assert_eq!((next.generation, next.world, next.members[0].lanes.len()), (2, 1, 2));

    for stale in [Report::Finished(Finished {}), Report::Drained(Drained {}), Report::Ready(Ready {})] {
        let refused = a.report(&at[0], stale).await.unwrap_err();
        assert_eq!(from_status(&refused).code(), code::FENCED);
    }
    a.step(&at[0], 99, 1.0).await;
    a.ready(&next).await;
    a.step(&next, 1, 1.0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let job = cluster.get("j").await.unwrap();
    assert_eq!(job.tasks[0].step, 1, "the stale row was ignored");
    a.finish(&next).await;
    let job = cluster.until("j", JobState::Succeeded).await;
    assert_eq!((job.generation, job.restarts), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_of_the_same_name_replaces_the_old_one_at_once() {
    let mut cluster = Cluster::start().await;
    let (mut a, mut b, at) = pair(&mut cluster).await;
    let mut reborn = cluster.worker("b", 2).await;
    assert_eq!(a.stop().await.mode(), StopMode::Abort);
    let alone = a.assignment().await;
    assert_eq!((alone.generation, alone.world), (2, 1), "the survivor waits for nobody");
    // The other one gets ready meanwhile, and joins at a step boundary.
    a.ready(&alone).await;
    assert_eq!(a.stop().await.mode(), StopMode::Yield);
    a.report(&alone, Report::Drained(Drained {})).await.unwrap();
    a.idle();
    let (first, second) = (a.assignment().await, reborn.assignment().await);
    assert_eq!((first.generation, second.generation, second.rank), (3, 3, 1));
    assert!(matches!(b.order().await, Ok(None) | Err(_)), "the old session ended");
    assert_eq!(from_status(&b.report(&at[1], Report::Drained(Drained {})).await.unwrap_err()).code(), code::FENCED);
    let back = Worker::join(&cluster.url(), "b", 1).await;
    assert_eq!(from_status(&back.err().expect("refused")).code(), code::FENCED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_training_thread_loses_its_lease() {
    let mut cluster =
        Cluster::start_with(pleach_coordinator::Settings { stall_grace: Duration::from_secs(2), ..fast() }).await;
    let (mut a, mut b, _) = pair(&mut cluster).await;
    b.hang();
    let stop = a.stop().await;
    assert!(stop.reason.contains("made no progress"), "{}", stop.reason);
    assert!(matches!(b.order().await, Ok(None) | Err(_)), "its session is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_until_they_are_permanent() {
    let mut cluster = Cluster::start().await;
    let (mut a, mut b, at) = pair(&mut cluster).await;
    let failure = Failure { code: "PL0501".into(), message: "rank 1 is gone".into(), hint: String::new() };
    let failed = GangFailed { failure: Some(failure), permanent: false, suspects: vec![], preparing: false };
    b.report(&at[1], Report::Failed(failed)).await.unwrap();
    b.idle();
    let first = a.assignment().await;
    let second = b.assignment().await;
    assert_eq!((first.generation, second.generation), (2, 2));
    let failure = Failure { code: "PL0201".into(), message: "no rows".into(), hint: String::new() };
    let failed = GangFailed { failure: Some(failure), permanent: true, suspects: vec![], preparing: false };
    a.report(&first, Report::Failed(failed)).await.unwrap();
    let job = cluster.until("j", JobState::Failed).await;
    assert_eq!((job.error_code.as_str(), job.reason.as_str()), ("PL0201", "no rows"));
    assert_eq!(b.stop().await.mode(), StopMode::Abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_comes_twice_counts_once() {
    let mut cluster = Cluster::start().await;
    let (mut a, b, at) = pair(&mut cluster).await;
    let failure = Failure { code: "PL0501".into(), message: "it broke".into(), hint: String::new() };
    let failed =
        Report::Failed(GangFailed { failure: Some(failure), permanent: false, suspects: vec![], preparing: false });
    let request = a.report_request(&at[0], 77, failed);
    a.client.report(request.clone()).await.unwrap();
    a.client.report(request).await.expect("a repeat is no news, and no error");
    assert_eq!(cluster.until("j", JobState::Starting).await.restarts, 1);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_repeated_to_a_new_session_and_the_end_of_the_old_one_changes_nothing() {
    let mut cluster = Cluster::start().await;
    let spec = cluster.spec("j", 1, 1);
    let mut a = cluster.worker("a", 1).await;
    cluster.submit(spec).await.unwrap();
    let at = a.assignment().await;
    // The same process comes back after its connection broke.
    let mut again = cluster.worker("a", 1).await;
    drop(a);
    let Some(Order::Assignment(repeated)) = again.order().await.unwrap() else { panic!("no assignment") };
    assert_eq!(repeated, at);
    again.ready(&at).await;
    tokio::time::sleep(fast().lease_ttl * 2).await;
    assert_eq!(cluster.get("j").await.unwrap().state(), JobState::Running, "the old stream's end changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_is_let_go_at_a_step_boundary() {
    let mut cluster = Cluster::start().await;
    let (mut a, mut b, at) = pair(&mut cluster).await;
    b.drain();
    assert_eq!(a.stop().await.mode(), StopMode::Yield);
    assert_eq!(b.stop().await.mode(), StopMode::Yield);
    b.report(&at[1], Report::Drained(Drained {})).await.unwrap();
    b.idle();
    a.report(&at[0], Report::Drained(Drained {})).await.unwrap();
    let next = a.assignment().await;
    assert_eq!((next.generation, next.world), (2, 1));
    assert_eq!(cluster.get("j").await.unwrap().restarts, 0, "leaving is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_lease_is_refused() {
    let cluster = Cluster::start().await;
    let mut client = WorkerServiceClient::connect(cluster.url()).await.unwrap();
    let message = Some(Message::Heartbeat(Heartbeat { idle: true, ..Heartbeat::default() }));
    let request = SessionRequest { worker: "stranger".into(), incarnation: 1, message, ..SessionRequest::default() };
    let mut orders = client.session(tokio_stream::once(request)).await.unwrap().into_inner();
    assert_eq!(from_status(&orders.message().await.unwrap_err()).code(), code::FENCED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_has_its_consequences_before_the_next_tick() {
    let hourly = Config { tick: Duration::from_secs(3600), ..config(StateStore::Memory) };
    let mut cluster = Cluster::at(serve(hourly, Shutdown::default()).await.unwrap()).await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    assert_eq!(a.assignment().await.generation, 1);
}
