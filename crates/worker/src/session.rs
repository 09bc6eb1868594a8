//! The lease: registers, keeps one bidirectional stream open, sends heartbeats that carry the training thread's
//! progress, and hands commands on. A broken stream is opened again after registering anew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pleach_base::{Error, Kind, Result, SharedClock};
use pleach_proto::status::from_status;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{Heartbeat, SessionRequest};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Client;
use crate::identity::Identity;
use crate::reporter::Part;

/// Rows that wait for the stream; older ones are worth more than newer ones only until the channel is full.
const WAITING_ROWS: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What heartbeats say, written by everyone.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Operations done by the training thread.
    pub(crate) progress: AtomicU64,
    draining: AtomicBool,
    /// What the worker works on: the coordinator repeats what got lost and stops what is no longer wanted.
    part: Mutex<Option<Part>>,
    /// Milliseconds of the clock at which the coordinator was last heard.
    heard: AtomicU64,
    /// Sends a heartbeat now.
    changed: Notify,
    clock: SharedClock,
}

impl Pulse {
    pub(crate) fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            progress: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            part: Mutex::new(None),
            heard: AtomicU64::new(millis(clock.elapsed())),
            changed: Notify::new(),
            clock,
        })
    }

    /// Says at once what the worker works on now; nothing when it is idle.
    pub(crate) fn works_on(&self, part: Option<Part>) {
        *self.part.lock().unwrap_or_else(PoisonError::into_inner) = part;
        self.changed.notify_one();
    }

    /// Says at once that the worker wants no more work.
    pub(crate) fn drains(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// How long the coordinator has been silent.
    pub(crate) fn silence(&self) -> Duration {
        let now = millis(self.clock.elapsed());
        Duration::from_millis(now.saturating_sub(self.heard.load(Ordering::SeqCst)))
    }

    fn hear(&self) {
        self.heard.store(millis(self.clock.elapsed()), Ordering::SeqCst);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The worker's end of the session.
pub(crate) struct Session {
    pub(crate) rows: mpsc::Sender<SessionRequest>,
    pub(crate) commands: mpsc::UnboundedReceiver<Result<Command>>,
    task: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Starts to register and to hold the stream.
    pub(crate) fn start(client: Client, identity: Identity, address: String, pulse: Arc<Pulse>) -> Self {
        let (rows, waiting) = mpsc::channel(WAITING_ROWS);
        let (tell, commands) = mpsc::unbounded_channel();
        let keeper = Keeper { client, identity, address, pulse, rows: waiting, tell, said: None };
        Self { rows, commands, task: tokio::spawn(keeper.keep()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    client: Client,
    identity: Identity,
    address: String,
    pulse: Arc<Pulse>,
    rows: mpsc::Receiver<SessionRequest>,
    tell: mpsc::UnboundedSender<Result<Command>>,
    /// When and what was last said about waiting.
    said: Option<(Duration, String)>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.hold().await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) if can_wait(&error) => self.say_waiting(&error),
                Err(error) => {
                    let _ = self.tell.send(Err(error));
                    return;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Says it once, and again when the reason changes or some time has passed.
    fn say_waiting(&mut self, error: &Error) {
        let (now, why) = (self.pulse.clock.elapsed(), error.chain());
        let again = self.said.as_ref().is_none_or(|(at, before)| now.saturating_sub(*at) > SAY_AGAIN || *before != why);
        if again {
            tracing::info!(reason = %why, "waiting for coordinator at {}", self.address);
            self.said = Some((now, why));
        }
    }

    /// One registration and one stream. `Ok` when the stream was up and has ended.
    async fn hold(&mut self) -> Result<()> {
        let lease = self.client.register(self.identity.request()).await.map_err(|s| from_status(&s))?.into_inner();
        let (send, requests) = mpsc::channel(64);
        // The first message goes out before the answer is awaited: the other side may want to know who calls.
        let _ = send.send(self.heartbeat()).await;
        let answer = self.client.session(ReceiverStream::new(requests)).await.map_err(|s| from_status(&s))?;
        self.pulse.hear();
        self.said = None;
        tracing::info!(worker = %self.identity.id, term = lease.term, "registered at {}", self.address);
        let every = Duration::from_millis((lease.lease_ttl_ms / 3).max(50));
        match self.serve(answer.into_inner(), send, every).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(reason = %error.chain(), "the session with the coordinator broke");
                if can_wait(&error) { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn serve(
        &mut self,
        mut answers: Streaming<pleach_proto::v1::SessionResponse>,
        send: mpsc::Sender<SessionRequest>,
        every: Duration,
    ) -> Result<()> {
        let mut beat = tokio::time::interval(every);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                answer = answers.message() => {
                    let Some(answer) = answer.map_err(|s| from_status(&s))? else { return Ok(()) };
                    self.pulse.hear();
                    if let Some(command) = answer.message {
                        let _ = self.tell.send(Ok(command));
                    }
                    continue;
                }
                Some(row) = self.rows.recv() => row,
                _ = beat.tick() => self.heartbeat(),
                () = self.pulse.changed.notified() => self.heartbeat(),
            };
            if send.send(request).await.is_err() {
                return Ok(());
            }
        }
    }

    fn heartbeat(&self) -> SessionRequest {
        let part = self.pulse.part.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let beat = Heartbeat {
            compute_seconds: 0.0,
            progress: self.pulse.progress.load(Ordering::SeqCst),
            idle: part.is_none(),
            draining: self.pulse.draining.load(Ordering::SeqCst),
        };
        request(&self.identity, part.as_ref(), Message::Heartbeat(beat))
    }
}

/// A message of this worker about a part, or about none.
pub(crate) fn request(identity: &Identity, part: Option<&Part>, message: Message) -> SessionRequest {
    let mut request = SessionRequest {
        worker: identity.id.name.clone(),
        incarnation: identity.id.incarnation,
        message: Some(message),
        ..SessionRequest::default()
    };
    if let Some(part) = part {
        request.tenant = part.tenant.to_string();
        request.job = part.job.to_string();
        request.term = part.fence.term.0;
        request.generation = part.fence.generation.0;
    }
    request
}

/// Whether the coordinator may take us later. A refused token or version stays refused.
fn can_wait(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Unavailable | Kind::Cancelled | Kind::Exhausted | Kind::Fenced | Kind::NotFound | Kind::Internal
    )
}
