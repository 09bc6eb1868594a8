//! Coordinator processes that share an etcd: killed, stopped, woken up again.

use std::time::Duration;

use pleach_base::code;
use pleach_proto::status::{from_status, leader};
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::{CancelJobRequest, GetJobRequest, JobState, ListJobsRequest};
use pleach_testkit::etcd::Etcd;
use pleach_testkit::process::Process;
use tonic::transport::Channel;

use crate::real::job;
use crate::{pleach, run};

const LIMIT: Duration = Duration::from_secs(60);

struct Coordinator {
    process: Process,
    address: String,
}

fn coordinator(etcd: &Etcd) -> Coordinator {
    let state = format!("etcd://{}/test", etcd.endpoints());
    let command = pleach(&["coordinator", "--listen", "127.0.0.1:0", "--http", "off", "--state", &state]);
    let process = Process::start("coordinator", command).unwrap();
    let address = process.wait_for("^http://", LIMIT).unwrap();
    Coordinator { process, address }
}

async fn client(of: &Coordinator) -> JobServiceClient<Channel> {
    JobServiceClient::connect(of.address.clone()).await.unwrap()
}

/// Waits until a coordinator leads.
async fn leads(of: &Coordinator) {
    let mut jobs = client(of).await;
    for _ in 0..LIMIT.as_millis() / 50 {
        if jobs.list_jobs(ListJobsRequest::default()).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} does not lead:\n{}", of.address, of.process.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_the_command_finds_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let file = job(folder.path());
    let etcd = Etcd::start(1).unwrap();
    let mut a = coordinator(&etcd);
    leads(&a).await;
    let b = coordinator(&etcd);
    let both = format!("{},{}", a.address, b.address);
    // The one that stands by sends the command to the one that leads.
    let (code, out, err) = run(&mut pleach(&["submit", &file, "--no-wait", "--id", "one", "--address", &b.address]));
    assert_eq!(code, 0, "{out}{err}");
    a.process.kill().unwrap();
    let (code, out, err) = run(&mut pleach(&["get", "one", "-o", "json", "--address", &both]));
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("queued"), "{out}");
    leads(&b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_writes_nothing_when_it_wakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = job(folder.path());
    let etcd = Etcd::start(1).unwrap();
    let a = coordinator(&etcd);
    leads(&a).await;
    let b = coordinator(&etcd);
    let (code, out, err) = run(&mut pleach(&["submit", &file, "--no-wait", "--id", "one", "--address", &a.address]));
    assert_eq!(code, 0, "{out}{err}");
    let mut at_a = client(&a).await;
    at_a.list_jobs(ListJobsRequest::default()).await.unwrap();

    a.process.pause().unwrap();
    leads(&b).await;
    // On its way to the old leader, which takes it in as soon as it wakes.
    let cancel = CancelJobRequest { id: "one".into(), reason: "a test".into() };
    let asked = tokio::spawn(async move { (at_a.cancel_job(cancel).await, at_a) });
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.process.resume().unwrap();
    let (refused, mut at_a) = asked.await.unwrap();
    let refused = from_status(&refused.expect_err("another one leads")).code();
    assert!([code::NOT_LEADER, code::UNREACHABLE].contains(&refused), "{refused:?}");
    let job = client(&b).await.get_job(GetJobRequest { id: "one".into() }).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), JobState::Queued, "nothing was written");

    // The process goes on, and stands by.
    for _ in 0..LIMIT.as_millis() / 50 {
        let refused = at_a.list_jobs(ListJobsRequest::default()).await.expect_err("it does not lead");
        if leader(&refused) == Some(b.address.as_str()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not stand by:\n{}", a.process.text());
}
