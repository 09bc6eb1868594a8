//! One simulated worker: a connection of its own, a session with a heartbeat a second, and obedience to orders.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Order;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use pleach_proto::v1::{
    Assignment, CommitRecord, Commits, Heartbeat, Prepared, Ready, RegisterRequest, ReportRequest, SessionRequest,
    SessionResponse,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::fleet::Shared;
use crate::server::TASK;

/// Time between heartbeats.
const EVERY: Duration = Duration::from_secs(1);
/// Any digest: nobody else trains this job.
const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

pub(crate) struct Worker {
    client: WorkerServiceClient<Channel>,
    name: String,
    shared: Arc<Shared>,
    requests: mpsc::Sender<SessionRequest>,
    /// The part that it has, and the task that commits its steps.
    part: Option<(Assignment, JoinHandle<()>)>,
    progress: u64,
}

impl Worker {
    /// Connects, registers and opens a session. Returns the worker and what the coordinator will say to it.
    pub(crate) async fn join(
        endpoint: Endpoint,
        name: String,
        shared: Arc<Shared>,
    ) -> Result<(Self, Streaming<SessionResponse>)> {
        let channel = endpoint.connect().await.with_context(|| format!("{name} cannot connect"))?;
        let mut client = WorkerServiceClient::new(channel);
        let request = RegisterRequest {
            worker: name.clone(),
            incarnation: 1,
            host: "127.0.0.1".into(),
            rendezvous_port: 4000,
            device: "cpu".into(),
            ..RegisterRequest::default()
        };
        client.register(request).await.with_context(|| format!("{name} cannot register"))?;
        let (requests, stream) = mpsc::channel(4);
        let mut worker = Self { client, name, shared, requests, part: None, progress: 0 };
        worker.beat().await;
        let session = worker.client.session(ReceiverStream::new(stream)).await;
        let orders = session.with_context(|| format!("{} cannot open its session", worker.name))?.into_inner();
        Ok((worker, orders))
    }

    /// Lives until the session breaks.
    pub(crate) async fn live(mut self, mut orders: Streaming<SessionResponse>) {
        let mut beats = tokio::time::interval(EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.tick().await;
        // The first answer is to the heartbeat that opened the session, which nobody timed.
        let mut sent = None;
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    sent = Some(self.shared.clock.elapsed());
                    self.beat().await;
                }
                answer = orders.message() => match answer {
                    Ok(Some(SessionResponse { message: Some(Order::Ack(_)) })) => {
                        if let Some(sent) = sent.take() {
                            self.shared.beats.note(self.shared.clock.elapsed().saturating_sub(sent));
                        }
                    }
                    Ok(Some(SessionResponse { message: Some(order) })) => self.obey(order),
                    Ok(Some(SessionResponse { message: None })) => {}
                    Ok(None) | Err(_) => break,
                },
            }
        }
        self.part.inspect(|(_, commits)| commits.abort());
        self.shared.lost();
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Prepare(at) => {
                let at = Assignment {
                    tenant: at.tenant,
                    job: at.job,
                    term: at.term,
                    generation: at.generation,
                    ..Assignment::default()
                };
                let (mut client, request) = (self.client.clone(), self.report(&at, Report::Prepared(Prepared {})));
                // It may be wanted elsewhere by now: then this is refused, and nothing is lost.
                tokio::spawn(async move { drop(client.report(request).await) });
            }
            Order::Assignment(at) => {
                if self.part.as_ref().is_some_and(|(now, _)| (&now.job, now.generation) == (&at.job, at.generation)) {
                    return;
                }
                let ready = self.report(&at, Report::Ready(Ready {}));
                let commits = tokio::spawn(commit(self.client.clone(), ready, Arc::clone(&self.shared)));
                if let Some((_, before)) = self.part.replace((at, commits)) {
                    before.abort();
                }
            }
            Order::Stop(_) => {
                if let Some((_, commits)) = self.part.take() {
                    commits.abort();
                }
            }
            Order::Ack(_) => {}
        }
    }

    async fn beat(&mut self) {
        self.progress += 1;
        let beat = Heartbeat { progress: self.progress, idle: self.part.is_none(), ..Heartbeat::default() };
        let mut request = SessionRequest {
            worker: self.name.clone(),
            incarnation: 1,
            message: Some(Message::Heartbeat(beat)),
            ..SessionRequest::default()
        };
        if let Some((at, _)) = &self.part {
            (request.tenant, request.job) = (at.tenant.clone(), at.job.clone());
            (request.term, request.generation) = (at.term, at.generation);
        }
        // A broken session is seen by who reads it.
        let _ = self.requests.send(request).await;
    }

    fn report(&self, at: &Assignment, report: Report) -> ReportRequest {
        ReportRequest {
            worker: self.name.clone(),
            incarnation: 1,
            report_seq: 0,
            tenant: at.tenant.clone(),
            job: at.job.clone(),
            term: at.term,
            generation: at.generation,
            report: Some(report),
        }
    }
}

/// Says that it is ready, and then one step after the other, each when the one before is on the disk.
async fn commit(mut client: WorkerServiceClient<Channel>, ready: ReportRequest, shared: Arc<Shared>) {
    if client.report(ready.clone()).await.is_err() {
        return;
    }
    shared.began();
    let mut record = CommitRecord {
        task: TASK.into(),
        term: ready.term,
        generation: ready.generation,
        digest: DIGEST.into(),
        sample_digest: DIGEST.into(),
        samples: 4,
        world: 1,
        lane_digests: vec![DIGEST.into()],
        ..CommitRecord::default()
    };
    shared.commits_wanted().await;
    loop {
        record.step += 1;
        let report = Report::Commits(Commits { records: vec![record.clone()] });
        let request = ReportRequest { report_seq: record.step, report: Some(report), ..ready.clone() };
        let sent = shared.clock.elapsed();
        if client.report(request).await.is_err() {
            return shared.refused();
        }
        shared.commits.note(shared.clock.elapsed().saturating_sub(sent));
    }
}
