//! A worker that speaks the protocol: registers, keeps its lease, takes orders, reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Order;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use pleach_proto::v1::{
    Assignment, Durable, Finished, Heartbeat, Prepared, Ready, RegisterRequest, ReportRequest, SessionRequest,
    SessionResponse, Stage, StageTime, StepRow, StepTimes, Stop, Times,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::cluster::LIMIT;

#[derive(Default)]
struct Shown {
    progress: AtomicU64,
    draining: AtomicBool,
    part: Mutex<Option<Assignment>>,
}

pub(crate) struct Worker {
    pub(crate) client: WorkerServiceClient<Channel>,
    name: String,
    incarnation: u64,
    requests: mpsc::Sender<SessionRequest>,
    orders: mpsc::UnboundedReceiver<Result<Order, Status>>,
    shown: Arc<Shown>,
    beats: JoinHandle<()>,
    listens: JoinHandle<()>,
    pub(crate) reports: u64,
}

impl Drop for Worker {
    /// As a killed process: the stream breaks, and nothing more is heard.
    fn drop(&mut self) {
        self.beats.abort();
        self.listens.abort();
    }
}

impl Worker {
    pub(crate) async fn join(url: &str, name: &str, incarnation: u64) -> Result<Self, Status> {
        let mut client = WorkerServiceClient::connect(url.to_owned()).await.expect("a connection");
        let request = RegisterRequest {
            worker: name.into(),
            incarnation,
            host: "127.0.0.1".into(),
            rendezvous_port: 4000,
            device: "cpu".into(),
            ..RegisterRequest::default()
        };
        let lease = client.register(request).await?.into_inner();
        let (requests, stream) = mpsc::channel(64);
        let shown = Arc::new(Shown::default());
        requests.send(heartbeat(name, incarnation, &shown)).await.unwrap();
        let orders = client.session(ReceiverStream::new(stream)).await?.into_inner();
        let every = Duration::from_millis(lease.lease_ttl_ms / 3);
        let beats = tokio::spawn(beat(name.to_owned(), incarnation, requests.clone(), Arc::clone(&shown), every));
        let (listens, orders) = listen(client.clone(), name.to_owned(), incarnation, orders);
        Ok(Self { client, name: name.into(), incarnation, requests, orders, shown, beats, listens, reports: 0 })
    }

    /// The next order that is no acknowledgement, and no request to get ready.
    pub(crate) async fn order(&mut self) -> Result<Option<Order>, Status> {
        tokio::time::timeout(LIMIT, self.orders.recv()).await.expect("an order in time").transpose()
    }

    /// The next assignment; orders to stop before it are obeyed.
    pub(crate) async fn assignment(&mut self) -> Assignment {
        loop {
            match self.order().await.unwrap().expect("the session stands") {
                Order::Assignment(assignment) => {
                    *self.shown.part.lock().unwrap() = Some(assignment.clone());
                    return assignment;
                }
                Order::Stop(_) => self.idle(),
                Order::Ack(_) | Order::Prepare(_) => {}
            }
        }
    }

    /// The next request to stop. A heartbeat that was under way while a generation ended is answered by one more word of
    /// that end: a worker in a later one passes over it.
    pub(crate) async fn stop(&mut self) -> Stop {
        loop {
            if let Order::Stop(stop) = self.order().await.unwrap().expect("the session stands") {
                let now = self.shown.part.lock().unwrap().as_ref().map_or(0, |part| part.generation);
                if stop.job.is_empty() || stop.generation >= now {
                    return stop;
                }
            }
        }
    }

    /// From now on heartbeats say that it works on nothing.
    pub(crate) fn idle(&self) {
        *self.shown.part.lock().unwrap() = None;
    }

    /// From now on heartbeats say that it leaves.
    pub(crate) fn drain(&self) {
        self.shown.draining.store(true, Ordering::SeqCst);
    }

    /// The network task lives on, the training thread makes no more progress.
    pub(crate) fn hang(&self) {
        self.shown.progress.store(u64::MAX, Ordering::SeqCst);
    }

    pub(crate) async fn report(&mut self, at: &Assignment, report: Report) -> Result<(), Status> {
        self.reports += 1;
        let request = self.report_request(at, self.reports, report);
        self.client.report(request).await.map(|_| ())
    }

    pub(crate) fn report_request(&self, at: &Assignment, report_seq: u64, report: Report) -> ReportRequest {
        ReportRequest {
            worker: self.name.clone(),
            incarnation: self.incarnation,
            report_seq,
            tenant: at.tenant.clone(),
            job: at.job.clone(),
            term: at.term,
            generation: at.generation,
            report: Some(report),
        }
    }

    pub(crate) async fn ready(&mut self, at: &Assignment) {
        self.report(at, Report::Ready(Ready {})).await.unwrap();
    }

    pub(crate) async fn step(&self, at: &Assignment, step: u64, loss: f64) {
        let row = StepRow {
            task: "answers".into(),
            step,
            total_steps: 8,
            loss,
            tokens: 100,
            step_seconds: 0.5,
            generation: at.generation,
            world: at.world,
            metrics: [("router/largest_share".to_owned(), 0.5)].into(),
            ..StepRow::default()
        };
        let request = SessionRequest {
            worker: self.name.clone(),
            incarnation: self.incarnation,
            message: Some(Message::Step(row)),
            tenant: at.tenant.clone(),
            job: at.job.clone(),
            term: at.term,
            generation: at.generation,
        };
        self.requests.send(request).await.unwrap();
    }

    /// Tells that a step took a second, and how much of it was waiting for input.
    pub(crate) async fn times(&self, at: &Assignment, step: u64, input_ms: u64) {
        let time = |stage: Stage, millis: u64| StageTime { stage: stage.into(), micros: millis * 1_000 };
        let stages = vec![time(Stage::Data, input_ms), time(Stage::Forward, 1_000 - input_ms)];
        let steps = vec![StepTimes { tasks: vec!["answers".into()], step, stages, ..StepTimes::default() }];
        let request = SessionRequest {
            worker: self.name.clone(),
            incarnation: self.incarnation,
            message: Some(Message::Times(Times { rank: at.rank, steps })),
            tenant: at.tenant.clone(),
            job: at.job.clone(),
            term: at.term,
            generation: at.generation,
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn durable(&mut self, at: &Assignment, step: u64) {
        let durable = Durable {
            task: "answers".into(),
            step,
            folder: format!("steps/{step:08}-g{:04}", at.generation),
            ..Durable::default()
        };
        self.report(at, Report::Durable(durable)).await.unwrap();
    }

    pub(crate) async fn finish(&mut self, at: &Assignment) {
        self.report(at, Report::Finished(Finished {})).await.unwrap();
        self.idle();
    }
}

/// Reads orders; says at once that it is ready when it is asked to get ready.
fn listen(
    mut client: WorkerServiceClient<Channel>,
    worker: String,
    incarnation: u64,
    mut orders: Streaming<SessionResponse>,
) -> (JoinHandle<()>, mpsc::UnboundedReceiver<Result<Order, Status>>) {
    let (send, receive) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        loop {
            let order = match orders.message().await {
                Ok(Some(SessionResponse { message: Some(order) })) => order,
                Ok(Some(SessionResponse { message: None })) => continue,
                Ok(None) => return,
                Err(status) => return drop(send.send(Err(status))),
            };
            match order {
                Order::Ack(_) => {}
                Order::Prepare(at) => {
                    let request = ReportRequest {
                        worker: worker.clone(),
                        incarnation,
                        report_seq: 0,
                        tenant: at.tenant,
                        job: at.job,
                        term: at.term,
                        generation: at.generation,
                        report: Some(Report::Prepared(Prepared {})),
                    };
                    // It may be wanted elsewhere by now.
                    let _ = client.report(request).await;
                }
                other => drop(send.send(Ok(other))),
            }
        }
    });
    (reading, receive)
}

async fn beat(
    name: String,
    incarnation: u64,
    requests: mpsc::Sender<SessionRequest>,
    shown: Arc<Shown>,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        if shown.progress.load(Ordering::SeqCst) < u64::MAX {
            shown.progress.fetch_add(1, Ordering::SeqCst);
        }
        if requests.send(heartbeat(&name, incarnation, &shown)).await.is_err() {
            return;
        }
    }
}

fn heartbeat(name: &str, incarnation: u64, shown: &Shown) -> SessionRequest {
    let part = shown.part.lock().unwrap().clone();
    let beat = Heartbeat {
        compute_seconds: 0.0,
        progress: shown.progress.load(Ordering::SeqCst),
        idle: part.is_none(),
        draining: shown.draining.load(Ordering::SeqCst),
    };
    let part = part.unwrap_or_default();
    SessionRequest {
        worker: name.into(),
        incarnation,
        message: Some(Message::Heartbeat(beat)),
        tenant: part.tenant,
        job: part.job,
        term: part.term,
        generation: part.generation,
    }
}
