//! A coordinator of which the test is the scheduler: it keeps what workers say and sends what it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_proto::status::not_leader;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use pleach_proto::v1::{
    HeartbeatAck, RegisterRequest, RegisterResponse, ReportRequest, ReportResponse, SessionRequest, SessionResponse,
    session_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Said {
    pub(crate) registered: Vec<RegisterRequest>,
    pub(crate) sessions: Vec<(String, SessionRequest)>,
    pub(crate) reports: Vec<ReportRequest>,
    commands: BTreeMap<String, mpsc::UnboundedSender<Result<SessionResponse, Status>>>,
    /// Answers this many reports with "unavailable" first.
    pub(crate) refuse_reports: u32,
    /// Leaves heartbeats without acknowledgement.
    pub(crate) mute: bool,
    /// Refuses everything and names this address, as a coordinator that stands by does.
    pub(crate) leader: Option<String>,
}

/// Handle of the test.
#[derive(Clone, Default)]
pub(crate) struct Coordinator(pub(crate) Arc<Mutex<Said>>);

impl Coordinator {
    /// Serves on `listener` until the runtime ends.
    pub(crate) fn serve(&self, listener: tokio::net::TcpListener) {
        let service = WorkerServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
    }

    /// Serves on `listener` in a runtime of its own: shutting that down is as if the process had died.
    pub(crate) fn serve_apart(&self, listener: std::net::TcpListener) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let _inside = runtime.enter();
        self.serve(tokio::net::TcpListener::from_std(listener).unwrap());
        drop(_inside);
        runtime
    }

    pub(crate) async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.serve(listener);
        address
    }

    pub(crate) fn send(&self, worker: &str, command: Command) {
        let said = self.0.lock().unwrap();
        said.commands[worker].send(Ok(SessionResponse { message: Some(command) })).unwrap();
    }

    /// Waits until `find` finds something in what was said.
    pub(crate) async fn wait<T>(&self, what: &str, find: impl Fn(&Said) -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = find(&self.0.lock().unwrap()) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// Waits for a worker's session and returns its registration.
    pub(crate) async fn worker(&self, name: &str) -> RegisterRequest {
        self.wait(name, |said| {
            said.commands.get(name)?;
            said.registered.iter().rev().find(|request| request.worker == name).cloned()
        })
        .await
    }

    /// Waits for a report of `worker` that `pick` takes.
    pub(crate) async fn report<T>(&self, worker: &str, what: &str, pick: impl Fn(&Report) -> Option<T>) -> T {
        self.wait(what, |said| {
            let own = said.reports.iter().filter(|report| report.worker == worker);
            own.filter_map(|report| report.report.as_ref()).find_map(&pick)
        })
        .await
    }
}

#[tonic::async_trait]
impl WorkerService for Coordinator {
    type SessionStream = UnboundedReceiverStream<Result<SessionResponse, Status>>;

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let mut said = self.0.lock().unwrap();
        if let Some(leader) = &said.leader {
            return Err(not_leader(Some(leader.as_str()).filter(|leader| !leader.is_empty())));
        }
        said.registered.push(request.into_inner());
        Ok(Response::new(RegisterResponse { lease_ttl_ms: 600, term: 1, grace_ms: 60_000 }))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.ok_or_else(|| Status::invalid_argument("no heartbeat"))?;
        let worker = first.worker.clone();
        let (send, commands) = mpsc::unbounded_channel();
        let said = Arc::clone(&self.0);
        said.lock().unwrap().commands.insert(worker.clone(), send);
        said.lock().unwrap().sessions.push((worker.clone(), first));
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                let mut said = said.lock().unwrap();
                let beats = heartbeat(&message).is_some() && !said.mute;
                said.sessions.push((worker.clone(), message));
                if let Some(commands) = said.commands.get(&worker).filter(|_| beats) {
                    let ack = Command::Ack(HeartbeatAck { term: 1 });
                    let _ = commands.send(Ok(SessionResponse { message: Some(ack) }));
                }
            }
            said.lock().unwrap().commands.remove(&worker);
        });
        Ok(Response::new(UnboundedReceiverStream::new(commands)))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let mut said = self.0.lock().unwrap();
        if let Some(leader) = &said.leader {
            return Err(not_leader(Some(leader.as_str()).filter(|leader| !leader.is_empty())));
        }
        if said.refuse_reports > 0 {
            said.refuse_reports -= 1;
            return Err(Status::unavailable("busy"));
        }
        said.reports.push(request.into_inner());
        Ok(Response::new(ReportResponse {}))
    }
}

/// What a heartbeat says.
pub(crate) fn heartbeat(request: &SessionRequest) -> Option<&pleach_proto::v1::Heartbeat> {
    match &request.message {
        Some(session_request::Message::Heartbeat(beat)) => Some(beat),
        _ => None,
    }
}
