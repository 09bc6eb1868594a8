//! Starting and stopping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Result, ResultExt, code};
use pleach_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use pleach_proto::v1::job_service_server::JobServiceServer;
use pleach_proto::v1::worker_service_server::WorkerServiceServer;
use pleach_proto::{DESCRIPTORS, MAX_MESSAGE_BYTES};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};

use crate::actor::{self, Actor, Handle, Role, Seat};
use crate::caller::Gate;
use crate::config::{Config, StateStore};
use crate::db::{Backend, File};
use crate::http;
use crate::service::{Checkpoints, Jobs, Shared, Workers};

/// Open calls get this long to end once a shutdown was requested.
const GRACE: Duration = Duration::from_secs(5);

/// A coordinator at work. It stops when the shutdown given to [`serve`] is requested.
#[derive(Debug)]
pub struct Running {
    /// Where the gRPC services really are.
    pub grpc_addr: SocketAddr,
    /// Where the HTTP side really is.
    pub http_addr: Option<SocketAddr>,
    shutdown: Shutdown,
    main: JoinHandle<Result<()>>,
}

impl Running {
    /// The address for clients and workers, such as `http://127.0.0.1:7700`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.grpc_addr)
    }

    /// Returns when the coordinator has stopped.
    ///
    /// # Errors
    /// When it stopped because it could not go on, such as a full disk.
    pub async fn stopped(self) -> Result<()> {
        self.main.await.or_code(code::INTERNAL, || "the coordinator's main task panicked".into())?
    }

    /// Asks it to stop and waits until it has: its ports and its state file are free then.
    ///
    /// # Errors
    /// As [`Running::stopped`].
    pub async fn stop(self, reason: &str) -> Result<()> {
        self.shutdown.request(reason);
        self.stopped().await
    }
}

/// Starts a coordinator: binds, loads its state as a new leader, and serves until `shutdown` is requested.
///
/// # Errors
/// `PORT_TAKEN`, `BAD_VALUE` (an address for others without a token), `IO` and `STATE_CORRUPT` for the state file.
pub async fn serve(config: Config, shutdown: Shutdown) -> Result<Running> {
    config.check()?;
    let grpc = bind("grpc_listen", config.grpc_listen).await?;
    let http = match config.http_listen {
        Some(address) => Some(bind("http_listen", address).await?),
        None => None,
    };
    let grpc_addr = grpc.local_addr().or_code(code::INTERNAL, || "a bound socket has no address".into())?;
    let http_addr = http.as_ref().and_then(|listener| listener.local_addr().ok());
    let recorder = PrometheusBuilder::new().build_recorder();
    let counters = recorder.handle();

    let path = match &config.state {
        StateStore::File(path) => Some(path.as_path()),
        StateStore::Memory => None,
    };
    let file = File::open(path)?;
    let (term, clean) = file.take_term(config.clock.now())?;
    let db: Arc<dyn Backend> = Arc::new(file);
    let actor = Actor::load(&config, db, term, clean)?;
    tracing::info!(%term, %grpc_addr, ?http_addr, "coordinator started");
    let (handle, requests) = actor::channel();
    let (roles, role) = tokio::sync::watch::channel(Role::Leader(handle.clone()));
    let seat = Seat::new(role);
    let stop = shutdown.clone();
    let acting =
        tokio::task::spawn_blocking(move || metrics::with_local_recorder(&recorder, || actor.run(requests, &stop)));
    let acting = tokio::spawn(async move {
        // Held here and not by the actor, which would wait for itself.
        let _roles = roles;
        acting.await.map(|_| ())
    });

    let tasks = TaskTracker::new();
    tasks.spawn(tick(handle, config.tick, shutdown.clone()));
    let shared = Shared { actor: seat.clone(), tasks: tasks.clone(), shutdown: shutdown.clone() };
    let router = router(&config, &shared).await?;
    if let Some(listener) = http {
        tasks.spawn(http::serve(listener, seat, counters, shutdown.clone()));
    }
    let main = tokio::spawn(run(router, grpc, shutdown.clone(), acting, tasks));
    Ok(Running { grpc_addr, http_addr, shutdown, main })
}

async fn bind(field: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| refused(field, address, error))
}

fn refused(field: &str, address: SocketAddr, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        return code::PORT_TAKEN
            .error(format!("{field}: {address} is in use"))
            .hint("stop the other process, or choose another port; port 0 takes any free one")
            .caused_by(error);
    }
    code::BAD_VALUE.error(format!("{field}: cannot listen on {address}")).caused_by(error)
}

async fn router(config: &Config, shared: &Shared) -> Result<Router> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let local = config.grpc_listen.ip().is_loopback();
    let jobs = JobServiceServer::new(Jobs::new(shared.clone(), local)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let workers = WorkerServiceServer::new(Workers::new(shared.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let checkpoints = CheckpointServiceServer::new(Checkpoints::new(shared.clone()));
    health.set_serving::<JobServiceServer<Jobs>>().await;
    health.set_serving::<WorkerServiceServer<Workers>>().await;
    health.set_serving::<CheckpointServiceServer<Checkpoints>>().await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unreadable = || "the descriptors cannot be read".to_owned();
    let gate = Gate::new(config.token.as_deref());
    // Health answers without a token: probes carry none, and learn nothing but that somebody serves.
    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(health_service)
        .add_service(InterceptedService::new(jobs, gate.clone()))
        .add_service(InterceptedService::new(workers, gate.clone()))
        .add_service(InterceptedService::new(checkpoints, gate.clone()))
        .add_service(InterceptedService::new(described().build_v1().or_code(code::INTERNAL, unreadable)?, gate.clone()))
        .add_service(InterceptedService::new(described().build_v1alpha().or_code(code::INTERNAL, unreadable)?, gate));
    Ok(router)
}

async fn tick(actor: Handle, every: Duration, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The last tick wakes an actor that is to stop.
        let works = actor.tell(Actor::tick).await;
        if !works || shutdown.is_requested() {
            return;
        }
    }
}

async fn run(
    router: Router,
    listener: TcpListener,
    shutdown: Shutdown,
    acting: JoinHandle<std::result::Result<(), tokio::task::JoinError>>,
    tasks: TaskTracker,
) -> Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = shutdown.clone();
    let mut serving =
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move { stop.requested().await }));
    // Either a shutdown was requested, or the actor gave up and requested one.
    acting.await.flatten().or_code(code::INTERNAL, || "the coordinator's actor panicked".into())?;
    shutdown.request("the coordinator stopped");
    tasks.close();
    let served = tokio::time::timeout(GRACE, &mut serving).await;
    if served.is_err() {
        tracing::warn!("calls are still open after {} s; cutting them off", GRACE.as_secs());
        serving.abort();
    }
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
    match shutdown.reason() {
        Some(reason) if reason == actor::CANNOT_STORE => Err(code::IO.error(reason)),
        _ => Ok(()),
    }
}
