//! Starting and stopping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Result, ResultExt, code};
use pleach_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use pleach_proto::v1::job_service_server::JobServiceServer;
use pleach_proto::v1::worker_service_server::WorkerServiceServer;
use pleach_proto::{DESCRIPTORS, MAX_MESSAGE_BYTES};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService as _;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::actor::{self, Actor, Handle, Role, Seat};
use crate::caller::Gate;
use crate::config::{Config, StateStore};
use crate::db::{Backend, File};
use crate::http;
use crate::lead::{Link, Stand, stand};
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

    let (roles, role) = watch::channel(Role::Follower { leader: None });
    let seat = Seat::new(role);
    let recorder = Arc::new(recorder);
    let acting = begin(&config, grpc_addr, recorder, roles, &shutdown).await?;
    tracing::info!(%grpc_addr, ?http_addr, "coordinator started");

    let tasks = TaskTracker::new();
    let shared = Shared { actor: seat.clone(), tasks: tasks.clone(), shutdown: shutdown.clone() };
    let router = router(&config, &shared).await?;
    if let Some(listener) = http {
        tasks.spawn(http::serve(listener, seat, counters, shutdown.clone()));
    }
    let main = tokio::spawn(run(router, grpc, shutdown.clone(), acting, tasks));
    Ok(Running { grpc_addr, http_addr, shutdown, main })
}

/// Begins to lead on a state of one's own, or to stand by on a shared one.
async fn begin(
    config: &Config,
    address: SocketAddr,
    recorder: Arc<PrometheusRecorder>,
    roles: watch::Sender<Role>,
    shutdown: &Shutdown,
) -> Result<JoinHandle<Result<()>>> {
    let path = match &config.state {
        StateStore::Etcd { endpoints, prefix } => {
            let link = Link::open(endpoints, prefix).await?;
            let advertise = config.advertise.clone().unwrap_or_else(|| format!("http://{address}"));
            let (config, shutdown) = (config.clone(), shutdown.clone());
            return Ok(tokio::spawn(stand(Stand { link, config, advertise, recorder, roles, shutdown })));
        }
        StateStore::File(path) => Some(path.as_path()),
        StateStore::Memory => None,
    };
    let file = File::open(path)?;
    let (term, clean) = file.take_term(config.clock.now())?;
    let db: Arc<dyn Backend> = Arc::new(file);
    let actor = Actor::load(config, db, term, clean)?;
    let (handle, requests) = actor::channel();
    tokio::spawn(tick(handle.clone(), config.tick, shutdown.clone()));
    roles.send_replace(Role::Leader(handle));
    let stop = shutdown.clone();
    let run = move || metrics::with_local_recorder(&*recorder, || actor.run(requests, &stop));
    let acting = tokio::task::spawn_blocking(run);
    Ok(tokio::spawn(async move {
        // Held here and not by the actor, which would wait for itself.
        let _roles = roles;
        let ended = acting.await;
        ended.map(|_| ()).or_code(code::INTERNAL, || "the coordinator's actor panicked".into())
    }))
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
    shared.tasks.spawn(report_health(health, shared.actor.roles(), shared.shutdown.clone()));
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unreadable = || "the descriptors cannot be read".to_owned();
    let open = Gate::new(config.token.as_deref());
    let gate = open.clone().leading(shared.actor.clone());
    // Health answers without a token: probes carry none, and learn nothing but that somebody serves.
    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(health_service)
        .add_service(InterceptedService::new(jobs, gate.clone()))
        .add_service(InterceptedService::new(workers, gate.clone()))
        .add_service(InterceptedService::new(checkpoints, gate))
        .add_service(InterceptedService::new(described().build_v1().or_code(code::INTERNAL, unreadable)?, open.clone()))
        .add_service(InterceptedService::new(described().build_v1alpha().or_code(code::INTERNAL, unreadable)?, open));
    Ok(router)
}

/// Says through the health service whether this coordinator leads: a Service before several picks the one that does.
async fn report_health(health: HealthReporter, mut roles: watch::Receiver<Role>, shutdown: Shutdown) {
    loop {
        let leads = matches!(&*roles.borrow_and_update(), Role::Leader(_));
        let status = if leads { ServingStatus::Serving } else { ServingStatus::NotServing };
        let names = ["", JobServiceServer::<Jobs>::NAME, WorkerServiceServer::<Workers>::NAME];
        for name in names.into_iter().chain([CheckpointServiceServer::<Checkpoints>::NAME]) {
            health.set_service_status(name, status).await;
        }
        let changed = tokio::select! {
            changed = roles.changed() => changed.is_ok(),
            () = shutdown.requested() => false,
        };
        if !changed {
            return;
        }
    }
}

pub(crate) async fn tick(actor: Handle, every: Duration, shutdown: Shutdown) {
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
    acting: JoinHandle<Result<()>>,
    tasks: TaskTracker,
) -> Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = shutdown.clone();
    let mut serving =
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move { stop.requested().await }));
    // Either a shutdown was requested, or the actor gave up and requested one.
    let acted = acting.await.or_code(code::INTERNAL, || "the coordinator's actor panicked".into());
    shutdown.request("the coordinator stopped");
    tasks.close();
    let served = tokio::time::timeout(GRACE, &mut serving).await;
    if served.is_err() {
        tracing::warn!("calls are still open after {} s; cutting them off", GRACE.as_secs());
        serving.abort();
    }
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
    acted??;
    match shutdown.reason() {
        Some(reason) if reason == actor::CANNOT_STORE => Err(code::IO.error(reason)),
        _ => Ok(()),
    }
}
