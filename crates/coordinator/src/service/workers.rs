//! `WorkerService`.

use pleach_base::{Error, Result, WorkerId, code};
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::worker_service_server::WorkerService;
use pleach_proto::v1::{
    RegisterRequest, RegisterResponse, ReportRequest, ReportResponse, SessionRequest, SessionResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, part, status};
use crate::actor::{Handle, Orders};

/// Orders and acknowledgements that a worker may leave unread before it is cut off.
const UNREAD: usize = 256;

pub(crate) struct Workers {
    shared: Shared,
}

impl Workers {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let worker = worker(&request.worker, request.incarnation).map_err(status)?;
        let port = u16::try_from(request.rendezvous_port)
            .map_err(|_| status(code::BAD_VALUE.error("rendezvous_port: it is not a port")))?;
        let pulse = u16::try_from(request.pulse_port)
            .map_err(|_| status(code::BAD_VALUE.error("pulse_port: it is not a port")))?;
        let host = request.host;
        let lease = self.shared.actor.ask(move |actor| actor.register(worker, host, (port, pulse))).await;
        Ok(Response::new(lease.map_err(status)?))
    }

    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (orders, answers) = mpsc::channel(UNREAD);
        let (shared, requests) = (self.shared.clone(), request.into_inner());
        self.shared.tasks.spawn(hold(shared, requests, orders));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let request = request.into_inner();
        let worker = worker(&request.worker, request.incarnation).map_err(status)?;
        let part = part(&request.tenant, &request.job, request.term, request.generation).map_err(status)?;
        let (Some(part), Some(said)) = (part, request.report) else {
            return Err(status(code::BAD_VALUE.error("report: it names no job, or says nothing")));
        };
        let seq = request.report_seq;
        self.shared.actor.ask(move |actor| actor.report(&worker, seq, &part, said)).await.map_err(status)?;
        Ok(Response::new(ReportResponse {}))
    }
}

fn worker(name: &str, incarnation: u64) -> Result<WorkerId> {
    if name.is_empty() || name.len() > 253 {
        return Err(code::BAD_VALUE.error("worker: the name is empty or too long"));
    }
    Ok(WorkerId { name: name.to_owned(), incarnation })
}

/// A session that stands.
struct Open {
    id: WorkerId,
    number: u64,
    /// Whose session it is: a leader after it knows nothing of it.
    actor: Handle,
    /// Cancelled when the actor gives the session up.
    given_up: CancellationToken,
    first: SessionRequest,
}

/// Reads a session until it breaks.
async fn hold(shared: Shared, mut requests: Streaming<SessionRequest>, orders: Orders) {
    let open = match open(&shared, &mut requests, &orders).await {
        Ok(Some(open)) => open,
        Ok(None) => return,
        Err(error) => {
            // The worker may be gone; then nobody is there to tell.
            let _ = orders.try_send(Err(status(error)));
            return;
        }
    };
    // From here on only the actor holds the sender: when it gives the session up, the stream ends.
    drop(orders);
    let Open { id, number, actor, given_up, first } = open;
    let mut message = Some(first);
    while let Some(request) = message {
        if let Err(error) = take(&actor, &id, request).await {
            tracing::debug!(worker = %id, error = %error.chain(), "closing the session");
            break;
        }
        message = tokio::select! {
            message = next(&shared, &mut requests) => message,
            () = given_up.cancelled() => None,
        };
    }
    actor.tell(move |actor| actor.close_session(&id, number)).await;
}

async fn open(shared: &Shared, requests: &mut Streaming<SessionRequest>, orders: &Orders) -> Result<Option<Open>> {
    let Some(first) = next(shared, requests).await else { return Ok(None) };
    let id = worker(&first.worker, first.incarnation)?;
    let given_up = CancellationToken::new();
    let (named, orders, guard) = (id.clone(), orders.clone(), given_up.clone().drop_guard());
    let actor = shared.actor.now()?;
    let number = actor.ask(move |actor| actor.open_session(&named, orders, guard)).await?;
    Ok(Some(Open { id, number, actor, given_up, first }))
}

async fn next(shared: &Shared, requests: &mut Streaming<SessionRequest>) -> Option<SessionRequest> {
    tokio::select! {
        message = requests.message() => message.ok().flatten(),
        () = shared.shutdown.requested() => None,
    }
}

async fn take(actor: &Handle, id: &WorkerId, request: SessionRequest) -> Result<()> {
    let SessionRequest { tenant, job, term, generation, message, .. } = request;
    let part = part(&tenant, &job, term, generation)?;
    let id = id.clone();
    let works = match (message, part) {
        (Some(Message::Heartbeat(beat)), part) => actor.tell(move |actor| actor.heartbeat(id, &beat, part)).await,
        (Some(Message::Step(row)), Some(part)) => actor.tell(move |actor| actor.step(&id, &part, row)).await,
        (Some(Message::Log(line)), Some(part)) => actor.tell(move |actor| actor.log(&part, line)).await,
        (Some(Message::Times(told)), Some(part)) => actor.tell(move |actor| actor.times(&id, &part, told)).await,
        (Some(Message::Step(_) | Message::Log(_) | Message::Times(_)), None) | (None, _) => true,
    };
    if works { Ok(()) } else { Err(going_down()) }
}

fn going_down() -> Error {
    code::UNREACHABLE.error("the coordinator is going down")
}
