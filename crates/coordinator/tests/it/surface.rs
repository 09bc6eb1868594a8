//! Ports, tokens, health, reflection, HTTP.

use std::time::Duration;

use pleach_base::code;
use pleach_base::shutdown::Shutdown;
use pleach_coordinator::{Config, StateStore, serve};
use pleach_proto::status::from_status;
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use pleach_proto::v1::{Assignment, GetProfileRequest, ListJobsRequest, RegisterRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::cluster::{Cluster, LIMIT, config};

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let first = serve(config(StateStore::Memory), Shutdown::default()).await.unwrap();
    let second = Config { grpc_listen: first.grpc_addr, ..config(StateStore::Memory) };
    let error = serve(second, Shutdown::default()).await.unwrap_err();
    assert_eq!(error.code(), code::PORT_TAKEN);
    assert!(error.message().contains(&first.grpc_addr.to_string()), "{error:?}");
    first.stop("done").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coordinators_do_not_share_a_state_file() {
    let cluster = Cluster::start().await;
    let state = StateStore::File(cluster.folder.path().join("state.redb"));
    let error = serve(config(state), Shutdown::default()).await.unwrap_err();
    assert_eq!(error.code(), code::IO);
    assert!(error.hint_text().unwrap_or_default().contains("another coordinator"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let error = serve(config(StateStore::File(path.clone())), Shutdown::default()).await.unwrap_err();
    assert!([code::STATE_CORRUPT, code::IO].contains(&error.code()), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_the_token_are_refused() {
    let config = Config {
        grpc_listen: "0.0.0.0:0".parse().unwrap(),
        token: Some("s3cret".into()),
        ..config(StateStore::Memory)
    };
    let running = serve(config, Shutdown::default()).await.unwrap();
    let url = format!("http://127.0.0.1:{}", running.grpc_addr.port());
    let mut jobs = JobServiceClient::connect(url.clone()).await.unwrap();
    for header in [None, Some("Bearer s3cres"), Some("s3cret")] {
        let mut request = Request::new(ListJobsRequest::default());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        let refused = jobs.list_jobs(request).await.unwrap_err();
        assert_eq!(from_status(&refused).code(), code::TOKEN_REFUSED, "{header:?}");
    }
    let mut workers = WorkerServiceClient::connect(url.clone()).await.unwrap();
    let refused = workers.register(RegisterRequest { worker: "w".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(from_status(&refused).code(), code::TOKEN_REFUSED);
    let mut request = Request::new(ListJobsRequest::default());
    request.metadata_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    jobs.list_jobs(request).await.unwrap();
    let mut health = HealthClient::new(channel(url).await);
    health.check(HealthCheckRequest::default()).await.expect("probes carry no token");
    running.stop("done").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    let cluster = Cluster::start().await;
    let mut health = HealthClient::new(channel(cluster.url()).await);
    for service in ["", "pleach.v1.JobService", "pleach.v1.WorkerService", "pleach.v1.CheckpointService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(channel(cluster.url()).await);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"pleach.v1.JobService") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}

async fn channel(url: String) -> Channel {
    Endpoint::from_shared(url).unwrap().connect().await.unwrap()
}

async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn http_shows_probes_metrics_and_a_page() {
    let http = Config { http_listen: Some("127.0.0.1:0".parse().unwrap()), ..config(StateStore::Memory) };
    let running = serve(http, Shutdown::default()).await.unwrap();
    let address = running.http_addr.unwrap();
    let url = running.url();
    let _worker = crate::worker::Worker::join(&url, "w<1>", 1).await.unwrap();
    for path in ["/healthz", "/readyz", "/metrics", "/"] {
        assert!(fetch(address, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    let metrics = fetch(address, "/metrics").await;
    for line in [
        "pleach_workers{state=\"idle\"} 1",
        "pleach_jobs{state=\"running\"} 0",
        "pleach_events_total{kind=\"WorkerJoined\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(fetch(address, "/").await.contains("w&lt;1&gt;"));
    let stopping = tokio::time::timeout(Duration::from_secs(8), running.stop("done"));
    stopping.await.expect("an open session does not keep it from stopping").unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_time_goes_is_told_and_slow_input_shows_as_a_gauge() {
    let http = Config { http_listen: Some("127.0.0.1:0".parse().unwrap()), ..config(StateStore::Memory) };
    let running = serve(http, Shutdown::default()).await.unwrap();
    let address = running.http_addr.unwrap();
    let mut cluster = Cluster::at(running).await;
    cluster.submit(cluster.spec("j", 1, 1)).await.unwrap();
    let mut worker = cluster.worker("w0", 1).await;
    let at = worker.assignment().await;
    worker.ready(&at).await;
    let gauge = "pleach_job_input_wait_share{tenant=\"default\",job=\"j\"}";
    assert!(!fetch(address, "/metrics").await.contains(gauge), "nothing is known yet");
    let late = Assignment { generation: at.generation + 1, ..at.clone() };
    worker.times(&late, 7, 1_000).await;
    worker.times(&at, 1, 100).await;
    worker.times(&at, 2, 700).await;
    let expected = format!("{gauge} 0.4");
    let told = async {
        while !fetch(address, "/metrics").await.lines().any(|line| line == expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("the gauge rises");
    let asked = cluster.jobs.get_profile(GetProfileRequest { id: "j".into() }).await.unwrap().into_inner();
    let steps: Vec<_> = asked.ranks[0].steps.iter().map(|step| step.step).collect();
    assert_eq!((asked.generation, asked.ranks[0].worker.as_str(), steps), (1, "w0", vec![1, 2]));
    let unknown = cluster.jobs.get_profile(GetProfileRequest { id: "k".into() }).await.unwrap_err();
    assert_eq!(from_status(&unknown).code(), code::JOB_NOT_FOUND);
}
