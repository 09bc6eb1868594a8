//! Coordinators that share an etcd: one leads, the others stand by.

use std::time::Duration;

use pleach_base::code;
use pleach_base::shutdown::Shutdown;
use pleach_coordinator::{Running, StateStore, serve};
use pleach_proto::status::{from_status, leader};
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{CommitRecord, Commits, JobState, ListCommitsRequest, ListJobsRequest};
use pleach_testkit::etcd::Etcd;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cluster::{Cluster, LIMIT, config};

async fn etcd(members: usize) -> Etcd {
    tokio::task::spawn_blocking(move || Etcd::start(members).unwrap()).await.unwrap()
}

async fn coordinator(etcd: &Etcd) -> Running {
    let state = StateStore::parse(&format!("etcd://{}/test", etcd.endpoints())).unwrap();
    serve(config(state), Shutdown::default()).await.unwrap()
}

/// Waits until a coordinator leads; returns the refusals before.
async fn leads(url: &str) -> Vec<pleach_base::Error> {
    let mut refusals = Vec::new();
    let mut jobs = JobServiceClient::connect(url.to_owned()).await.unwrap();
    for _ in 0..3 * LIMIT.as_millis() / 20 {
        match jobs.list_jobs(ListJobsRequest::default()).await {
            Ok(_) => return refusals,
            Err(status) => refusals.push(from_status(&status)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{url} does not lead: {:?}", refusals.last());
}

fn record(step: u64, at: &pleach_proto::v1::Assignment) -> CommitRecord {
    CommitRecord {
        task: "answers".into(),
        step,
        term: at.term,
        generation: at.generation,
        digest: format!("{step:064}"),
        samples: 4,
        ..CommitRecord::default()
    }
}

async fn commits(cluster: &mut Cluster) -> Vec<CommitRecord> {
    let request = ListCommitsRequest { id: "j".into(), task: "answers".into() };
    cluster.jobs.list_commits(request).await.unwrap().into_inner().commits
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_redirect_and_take_over_with_jobs_records_and_history() {
    let etcd = etcd(1).await;
    let first = coordinator(&etcd).await;
    leads(&first.url()).await;
    let url = first.url();
    let second = coordinator(&etcd).await;

    // The follower says who leads, and its health that it does not.
    let mut jobs = JobServiceClient::connect(second.url()).await.unwrap();
    let refused = loop {
        let refused = jobs.list_jobs(ListJobsRequest::default()).await.unwrap_err();
        if leader(&refused).is_some() {
            break refused;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((from_status(&refused).code(), leader(&refused)), (code::NOT_LEADER, Some(url.as_str())));
    let channel = tonic::transport::Endpoint::from_shared(second.url()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let request = HealthCheckRequest { service: "pleach.v1.WorkerService".into() };
    let status = health.check(request.clone()).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);

    let mut cluster = Cluster::at(first).await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    let mut a = cluster.worker("a", 1).await;
    let at = a.assignment().await;
    a.ready(&at).await;
    let records: Vec<_> = (1..=20).map(|step| record(step, &at)).collect();
    for _ in 0..2 {
        a.report(&at, Report::Commits(Commits { records: records.clone() })).await.unwrap();
    }
    assert_eq!(commits(&mut cluster).await, records, "told twice, recorded once");
    let seen = cluster.get("j").await.unwrap();
    assert_eq!(seen.tasks[0].recorded_step, 20);

    cluster.stop().await;
    leads(&second.url()).await;
    assert_eq!(health.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving);
    let folder = cluster.folder;
    let mut cluster = Cluster::at(second).await;
    cluster.folder = folder;
    let job = cluster.get("j").await.unwrap();
    assert_eq!((job.created_unix_ms, job.tasks[0].recorded_step), (seen.created_unix_ms, 20));
    assert_eq!(commits(&mut cluster).await, records[4..], "the newest are in etcd");
    cluster.cancel("j").await.unwrap();
    cluster.until("j", JobState::Cancelled).await;
    let updates = crate::cluster::all(cluster.watch("j", 0).await).await;
    let kind = |update: &pleach_proto::v1::WatchJobResponse| match &update.update {
        Some(Update::Event(event)) => Some(event.kind.clone()),
        _ => None,
    };
    let kinds: Vec<_> = updates.iter().filter_map(kind).collect();
    assert_eq!(kinds.first().map(String::as_str), Some("Submitted"), "{kinds:?}");
    assert_eq!(kinds.last().map(String::as_str), Some("Cancelled"), "{kinds:?}");
    let seqs: Vec<_> = updates.iter().map(|update| update.seq).filter(|seq| *seq > 0).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_etcd_is_unavailable_and_comes_back() {
    let mut etcd = etcd(1).await;
    let first = coordinator(&etcd).await;
    leads(&first.url()).await;
    let mut cluster = Cluster::at(first).await;
    let spec = cluster.spec("j", 1, 1);
    cluster.submit(spec).await.unwrap();
    etcd.kill(0).unwrap();
    let refused = tokio::time::timeout(LIMIT, async {
        loop {
            if let Err(status) = cluster.get("j").await {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(refused.await.expect("a refusal").code(), tonic::Code::Unavailable);
    etcd.restart(0).unwrap();
    leads(&cluster.url()).await;
    assert_eq!(cluster.get("j").await.unwrap().state(), JobState::Queued);
    let spec = cluster.spec("k", 1, 1);
    cluster.submit(spec).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_etcd_come_and_go() {
    let mut etcd = etcd(3).await;
    let first = coordinator(&etcd).await;
    leads(&first.url()).await;
    let mut cluster = Cluster::at(first).await;
    let gone = etcd.leader().unwrap();
    etcd.kill(gone).unwrap();
    leads(&cluster.url()).await;
    let mut submitted = 0;
    while submitted < 3 {
        let spec = cluster.spec(&format!("j{submitted}"), 1, 1);
        match cluster.submit(spec).await {
            Ok(_) => submitted += 1,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
                leads(&cluster.url()).await;
            }
        }
    }
    etcd.restart(gone).unwrap();
    etcd.wait_healthy(LIMIT).unwrap();
    for index in 0..3 {
        assert_eq!(cluster.get(&format!("j{index}")).await.unwrap().state(), JobState::Queued);
    }
    cluster.stop().await;
}
