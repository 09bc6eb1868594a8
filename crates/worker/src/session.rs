//! The lease: registers, keeps one bidirectional stream open, sends heartbeats that carry the training thread's
//! progress, and hands commands on. A broken or silent stream is opened again after registering anew, with whichever
//! coordinator leads by then.

use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Error, Kind, Result, code};
use pleach_proto::status::{from_status, leader};
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{SessionRequest, SessionResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::coordinators::{Client, Coordinators, Current};
use crate::heart::Heart;
use crate::identity::Identity;
use crate::reporter::Part;

/// Rows that wait for the stream; older ones are worth more than newer ones only until the channel is full.
const WAITING_ROWS: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a coordinator may take for one answer before another one is tried: it may be stopped, or cut off.
const ANSWER: Duration = Duration::from_secs(3);
/// Heartbeats come at least so often: peers that stall ask who was heard last.
const LONGEST_BEAT: Duration = Duration::from_millis(500);
/// So many redirects are followed without a pause.
const REDIRECTS: u32 = 3;
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The worker's end of the session.
pub(crate) struct Session {
    pub(crate) rows: mpsc::Sender<SessionRequest>,
    pub(crate) commands: mpsc::UnboundedReceiver<Result<Command>>,
    task: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Starts to register and to hold the stream.
    pub(crate) fn start(coordinators: Coordinators, identity: Identity, heart: Arc<Heart>) -> Self {
        let (rows, waiting) = mpsc::channel(WAITING_ROWS);
        let (tell, commands) = mpsc::unbounded_channel();
        let keeper = Keeper { coordinators, identity, heart, rows: waiting, tell, said: None };
        Self { rows, commands, task: tokio::spawn(keeper.keep()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why there is no session, and who leads instead if that was said.
struct Refusal {
    error: Error,
    leader: Option<String>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { error: from_status(&status), leader: leader(&status).map(str::to_owned) }
    }
}

struct Keeper {
    coordinators: Coordinators,
    identity: Identity,
    heart: Arc<Heart>,
    rows: mpsc::Receiver<SessionRequest>,
    tell: mpsc::UnboundedSender<Result<Command>>,
    /// When and what was last said about waiting.
    said: Option<(Duration, String)>,
}

impl Keeper {
    async fn keep(mut self) {
        let (mut pause, mut redirects) = (FIRST_PAUSE, 0);
        loop {
            let current = self.coordinators.current();
            let held = self.hold(&current).await;
            self.coordinators.attach(false);
            match held {
                // It was up: the same one may be back at once.
                Ok(()) => (pause, redirects) = (FIRST_PAUSE, 0),
                Err(Refusal { error, leader: Some(leader) }) if can_wait(&error) => {
                    self.coordinators.turn_to(&leader);
                    redirects += 1;
                    if redirects <= REDIRECTS {
                        continue;
                    }
                }
                Err(Refusal { error, leader: None }) if can_wait(&error) => {
                    self.say_waiting(&current.address, &error);
                    self.coordinators.next();
                }
                Err(Refusal { error, .. }) => {
                    let _ = self.tell.send(Err(error));
                    return;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Says it once, and again when the reason changes or some time has passed.
    fn say_waiting(&mut self, address: &str, error: &Error) {
        let (now, why) = (self.heart.clock.elapsed(), error.chain());
        let again = self.said.as_ref().is_none_or(|(at, before)| now.saturating_sub(*at) > SAY_AGAIN || *before != why);
        if again {
            tracing::info!(reason = %why, "waiting for coordinator at {address}");
            self.said = Some((now, why));
        }
    }

    /// One registration and one stream. `Ok` when the stream was up and has ended.
    async fn hold(&mut self, current: &Current) -> Result<(), Refusal> {
        let (mut client, address) = (current.client.clone(), &current.address);
        let lease = in_time(client.register(self.identity.request())).await?.into_inner();
        let (send, answers) = self.open(&mut client).await?;
        self.heart.hears();
        self.heart.set_grace(lease.grace_ms);
        self.said = None;
        self.coordinators.attach(true);
        tracing::info!(worker = %self.identity.id, term = lease.term, "registered at {address}");
        let every = Duration::from_millis((lease.lease_ttl_ms / 3).max(50)).min(LONGEST_BEAT);
        match self.serve(answers, send, every).await {
            Ok(()) => Ok(()),
            Err(refusal) => {
                tracing::warn!(reason = %refusal.error.chain(), "the session with the coordinator broke");
                let passing = can_wait(&refusal.error) && refusal.leader.is_none();
                if passing { Ok(()) } else { Err(refusal) }
            }
        }
    }

    async fn open(
        &self,
        client: &mut Client,
    ) -> Result<(mpsc::Sender<SessionRequest>, Streaming<SessionResponse>), Refusal> {
        let (send, requests) = mpsc::channel(64);
        // The first message goes out before the answer is awaited: the other side may want to know who calls.
        let _ = send.send(self.heartbeat()).await;
        let answer = in_time(client.session(ReceiverStream::new(requests))).await?;
        Ok((send, answer.into_inner()))
    }

    async fn serve(
        &mut self,
        mut answers: Streaming<SessionResponse>,
        send: mpsc::Sender<SessionRequest>,
        every: Duration,
    ) -> Result<(), Refusal> {
        let mut beat = tokio::time::interval(every);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let patience = ANSWER.max(every * 4);
        loop {
            let request = tokio::select! {
                answer = answers.message() => {
                    let Some(answer) = answer? else { return Ok(()) };
                    self.heart.hears();
                    if let Some(command) = answer.message {
                        let _ = self.tell.send(Ok(command));
                    }
                    continue;
                }
                Some(row) = self.rows.recv() => row,
                _ = beat.tick() => self.heartbeat(),
                () = self.heart.urgent() => self.heartbeat(),
            };
            // Each heartbeat is acknowledged: who does not is stopped, or cut off from here.
            if self.heart.silence() > patience {
                self.coordinators.next();
                let said = format!("the coordinator said nothing for {} s", patience.as_secs());
                return Err(Refusal { error: code::UNREACHABLE.error(said), leader: None });
            }
            // A stream that takes nothing is found by the same clock.
            let beats = matches!(request.message, Some(Message::Heartbeat(_)));
            let times = beats.then(|| self.times()).flatten();
            for request in std::iter::once(request).chain(times) {
                match tokio::time::timeout(patience, send.send(request)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Ok(()),
                }
            }
        }
    }

    /// What goes along with a heartbeat.
    fn times(&self) -> Option<SessionRequest> {
        let (part, times) = self.heart.times.take()?;
        Some(request(&self.identity, Some(&part), Message::Times(times)))
    }

    fn heartbeat(&self) -> SessionRequest {
        let (beat, part) = self.heart.beat();
        request(&self.identity, part.as_ref(), Message::Heartbeat(beat))
    }
}

/// An answer, or the refusal of one that takes too long.
async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Refusal> {
    let late = |_| Refusal {
        error: code::UNREACHABLE.error(format!("no answer within {} s", ANSWER.as_secs())),
        leader: None,
    };
    Ok(tokio::time::timeout(ANSWER, call).await.map_err(late)??)
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
