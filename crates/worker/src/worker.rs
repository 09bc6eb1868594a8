//! The worker's own state: what it works on, and what it does about orders, ends of parts, signals and silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Fence, Generation, JobId, Kind, Result, SystemClock, Term, UlidSource, code};
use pleach_comm::RendezvousServer;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{Drained, Finished, GangFailed, Prepared, Stop, StopMode};
use pleach_train::{FeedLog, FeedSink, Outcome, StopSignal, Warm};
use tokio::sync::mpsc;

use crate::cli::Args;
use crate::coordinators::Coordinators;
use crate::crew::Crew;
use crate::fault::Faults;
use crate::gang::{self, Done, End, Surroundings};
use crate::heart::Heart;
use crate::identity::Identity;
use crate::order::Order;
use crate::reporter::{Part, Reporter};
use crate::session::Session;
use crate::verdict;

/// How long a worker that leaves waits for its last reports to be taken.
const LAST_REPORTS: Duration = Duration::from_secs(10);
/// And for a heartbeat to take along where the time of its last steps went.
const LAST_TIMES: Duration = Duration::from_millis(500);
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// Training goes on so long without a coordinator that never said how long.
const GRACE: Duration = Duration::from_secs(75);
/// A worker that wants to leave a gang waits so long for the coordinator to see to it; then it ends the gang itself, with
/// a checkpoint.
const LEAVE: Duration = Duration::from_secs(10);
/// A crew whose `pleach train` is gone writes its checkpoint within this time, or not at all.
const ORPHAN: Duration = Duration::from_secs(60);
/// With `--once`: after so long without any work the one job is taken to be over, however its last part ended.
const ONCE: Duration = Duration::from_secs(60);

/// Serves a coordinator until `shutdown` is requested (or, with `--once`, one job has ended).
///
/// # Errors
/// Bad arguments; `COMM_SETUP` when the rendezvous cannot be served; what the coordinator refuses for good (a wrong
/// token, another version).
pub async fn run(args: Args, shutdown: Shutdown) -> Result<()> {
    let clock = SystemClock::shared();
    let ids = UlidSource::new(Arc::clone(&clock));
    let coordinators = Coordinators::new(&args)?;
    let rendezvous = RendezvousServer::start(&args.listen_host, 0)?;
    let identity = Identity::new(&args, &ids, rendezvous.port())?;
    let heart = Heart::new(Arc::clone(&clock));
    let (fenced, mut refused) = mpsc::unbounded_channel();
    let reporter = Reporter::start(coordinators.clone(), identity.clone(), Arc::clone(&clock), fenced);
    let mut session = Session::start(coordinators, identity.clone(), Arc::clone(&heart));
    let around = Surroundings {
        feed: feed(&args, &identity)?,
        faults: args.fault_file.as_deref().map(Faults::new),
        identity,
        bind: args.comm_bind.clone(),
        checked: args.checked,
        clock,
        heart,
        reporter: reporter.clone(),
        rows: session.rows.clone(),
    };
    let (tell_done, mut done) = mpsc::unbounded_channel();
    let mut worker = Worker::new(around, tell_done, &args);
    let mut look = tokio::time::interval(LOOK_AROUND);
    while !worker.is_over() {
        tokio::select! {
            command = session.commands.recv() => match command {
                Some(Ok(command)) => worker.obey(command),
                Some(Err(error)) => return Err(error),
                None => return Err(code::INTERNAL.error("the session task is gone")),
            },
            Some(end) = done.recv() => worker.ended(end),
            Some(part) = refused.recv() => worker.fenced(&part),
            () = shutdown.requested(), if worker.leaving.is_none() => {
                worker.leave(shutdown.reason().unwrap_or("asked to stop"));
            }
            _ = look.tick() => worker.look_around()?,
        }
    }
    let _ = tokio::time::timeout(LAST_TIMES, worker.around.heart.times.told()).await;
    if !worker.orphaned && !reporter.flush(LAST_REPORTS).await {
        tracing::warn!("the coordinator did not take the last reports within {} s", LAST_REPORTS.as_secs());
    }
    Ok(())
}

fn feed(args: &Args, identity: &Identity) -> Result<Option<Arc<dyn FeedSink>>> {
    let Some(folder) = &args.feed_log else { return Ok(None) };
    let id = &identity.id;
    let log = FeedLog::open(&folder.join(format!("{}-{}.jsonl", id.name, id.incarnation)))?;
    Ok(Some(Arc::new(log)))
}

/// What the training thread does.
struct Current {
    part: Part,
    /// Ranks of the gang; none while it only gets ready.
    world: Option<u32>,
    stop: StopSignal,
}

struct Worker {
    around: Surroundings,
    tell_done: mpsc::UnboundedSender<Done>,
    grace: Option<Duration>,
    once: bool,
    crew: Option<Crew>,
    current: Option<Current>,
    /// A newer order that waits for the current part to end.
    next: Option<Order>,
    /// The part that ended last. Its order may come again while the coordinator waits for the other ranks.
    last: Option<Part>,
    /// The newest fence that each job was trained under: an order of an older one comes from a leader of the past.
    newest: BTreeMap<JobId, Fence>,
    warm: Warm,
    /// Since when it wants to leave.
    leaving: Option<Duration>,
    orphaned: bool,
    /// A job has ended here for good.
    served: bool,
    /// Since when there is nothing to do, once there was something.
    idle_since: Option<Duration>,
}

impl Worker {
    fn new(around: Surroundings, tell_done: mpsc::UnboundedSender<Done>, args: &Args) -> Self {
        Self {
            around,
            tell_done,
            grace: args.grace.map(Duration::from_secs),
            once: args.once,
            crew: args.crew_of.map(Crew::of),
            current: None,
            next: None,
            last: None,
            newest: BTreeMap::new(),
            warm: Warm::default(),
            leaving: None,
            orphaned: false,
            served: false,
            idle_since: None,
        }
    }

    fn is_over(&self) -> bool {
        let idle = || self.idle_since.is_some_and(|since| self.now().saturating_sub(since) > ONCE);
        self.current.is_none() && (self.leaving.is_some() || (self.once && (self.served || idle())))
    }

    fn now(&self) -> Duration {
        self.around.clock.elapsed()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Assignment(assignment) => self.ordered(Order::Assignment(Box::new(assignment))),
            Command::Prepare(prepare) => self.ordered(Order::Prepare(Box::new(prepare))),
            Command::Stop(stop) => self.stop(&stop),
            Command::Ack(_) => {}
        }
    }

    fn ordered(&mut self, order: Order) {
        let part = order.part();
        let preparing = !order.is_assignment();
        if self.leaving.is_some() {
            // What it still trains in is told again after a reconnect, and goes on until the others can go on without it.
            if preparing || self.current.as_ref().is_none_or(|current| current.part != part) {
                let error = code::WORKER_LOST.error("the worker is draining");
                self.report_failure(&part, &error, Vec::new(), preparing);
            }
            return;
        }
        if self.newest.get(&part.job).is_some_and(|newest| part.fence < *newest) {
            return tracing::info!(job = %part.job, "an order of generation {} comes too late", part.fence);
        }
        let Some(current) = &self.current else {
            // How it ended is told by the report, which is repeated until it is heard.
            let again = order.is_assignment() && self.last.as_ref() == Some(&part);
            if !again {
                self.begin(order);
            }
            return;
        };
        let (same_job, same_kind) = (current.part.job == part.job, current.world.is_some() == order.is_assignment());
        if same_kind && current.part == part {
            // Sent again after a reconnect.
            return;
        }
        // Getting ready for this job is what the next part begins with.
        if current.world.is_some() || !same_job {
            current.stop.abort(format!("superseded by generation {} of job {}", part.fence, part.job));
        }
        self.next = Some(order);
    }

    fn begin(&mut self, order: Order) {
        let part = order.part();
        let stop = StopSignal::default();
        let started = order.work().and_then(|work| {
            let warm = std::mem::take(&mut self.warm);
            gang::start(work, self.around.clone(), stop.clone(), warm, self.tell_done.clone())
        });
        if let Err(error) = started {
            return self.report_failure(&part, &error, Vec::new(), !order.is_assignment());
        }
        let world = order.world();
        if world.is_some() {
            self.newest.insert(part.job.clone(), part.fence);
            self.around.heart.works_on(Some(part.clone()));
        }
        self.current = Some(Current { part, world, stop });
    }

    fn stop(&mut self, stop: &Stop) {
        let meant = |part: &Part| {
            let fence = Fence { term: Term(stop.term), generation: Generation(stop.generation) };
            stop.job.is_empty()
                || (part.job.as_str() == stop.job && part.tenant.as_str() == stop.tenant && part.fence == fence)
        };
        if self.next.as_ref().is_some_and(|next| meant(&next.part())) {
            self.next = None;
        }
        let Some(current) = self.current.as_ref().filter(|current| meant(&current.part)) else { return };
        let reason = stop.reason.clone();
        match stop.mode() {
            StopMode::Abort => current.stop.abort(reason),
            _ if current.world.is_none() => current.stop.abort(reason),
            StopMode::Yield => current.stop.yield_now(reason),
            StopMode::Drain | StopMode::Unspecified => current.stop.drain(reason),
        }
    }

    /// The coordinator takes no reports of this part any more: a newer generation exists.
    fn fenced(&mut self, part: &Part) {
        if let Some(current) = self.current.as_ref().filter(|current| current.part == *part) {
            current.stop.abort("a newer generation took over");
        }
    }

    /// The coordinator hears that this worker wants to go, and lets the gang go on without it from the next step on. The
    /// last one of a gang, or of a crew that leaves as a whole, has nobody to leave the state to.
    fn leave(&mut self, reason: &str) {
        tracing::info!("{reason}: finishing the step and leaving");
        self.leaving = Some(self.now());
        self.next = None;
        self.around.heart.drains();
        match &self.current {
            Some(Current { world: None, stop, .. }) => stop.abort(reason),
            Some(Current { world: Some(1), stop, .. }) => stop.drain(reason),
            Some(Current { stop, .. }) if self.crew.is_some() => stop.drain(reason),
            Some(_) | None => {}
        }
    }

    /// Looks for what nobody tells.
    ///
    /// # Errors
    /// `UNREACHABLE` when the `pleach train` that this worker belongs to is long gone.
    fn look_around(&mut self) -> Result<()> {
        if !self.orphaned && self.crew.as_ref().is_some_and(Crew::is_gone) {
            self.orphaned = true;
            if self.leaving.is_none() {
                self.leave("the command that started this worker is gone");
            }
        }
        let left = self.leaving.map(|since| self.now().saturating_sub(since));
        if self.orphaned && left > Some(ORPHAN) {
            return Err(code::UNREACHABLE.error("the command that started this worker is gone"));
        }
        if let Some(current) = self.current.as_ref().filter(|_| left > Some(LEAVE)) {
            current.stop.drain("the coordinator does not let this worker go");
        }
        self.mind_silence();
        Ok(())
    }

    /// Training does not outlive the coordinator for long: another generation may be under way elsewhere.
    fn mind_silence(&mut self) {
        let grace = self.grace.or_else(|| self.around.heart.grace()).unwrap_or(GRACE);
        let silence = self.around.heart.silence();
        let training = self.current.as_ref().filter(|current| current.world.is_some() && !current.stop.is_draining());
        if let Some(current) = training.filter(|_| silence >= grace) {
            tracing::warn!("no word from the coordinator for {} s: stopping with a checkpoint", silence.as_secs());
            current.stop.drain(format!("no word from the coordinator for {} s", silence.as_secs()));
        }
    }

    fn ended(&mut self, done: Done) {
        let aborted = self.current.take().is_some_and(|current| current.stop.is_aborted());
        let Done { part, end, suspects, warm } = done;
        self.warm = warm;
        match end {
            End::Prepared(Ok(())) => self.around.reporter.send(&part, Report::Prepared(Prepared {})),
            End::Prepared(Err(error)) if aborted => {
                tracing::info!(job = %part.job, reason = %error.chain(), "gave up getting ready");
            }
            End::Prepared(Err(error)) => self.report_failure(&part, &error, suspects, true),
            End::Trained(outcome) => {
                self.idle_since = Some(self.now());
                self.around.heart.works_on(None);
                self.last = Some(part.clone());
                self.trained(&part, outcome, aborted, suspects);
            }
        }
        if let Some(next) = self.next.take() {
            self.ordered(next);
        }
    }

    fn trained(&mut self, part: &Part, outcome: Result<Outcome>, aborted: bool, suspects: Vec<u32>) {
        let reporter = &self.around.reporter;
        match outcome {
            Ok(Outcome::Finished) => reporter.send(part, Report::Finished(Finished {})),
            Ok(Outcome::Drained | Outcome::Yielded) => reporter.send(part, Report::Drained(Drained {})),
            Err(ref error) if aborted || error.kind() == Kind::Fenced => {
                tracing::info!(job = %part.job, reason = %error.chain(), "left generation {}", part.fence);
            }
            Err(ref error) => self.report_failure(part, error, suspects, false),
        }
        self.served |= match &outcome {
            Ok(Outcome::Finished | Outcome::Drained) => true,
            Ok(Outcome::Yielded) => false,
            Err(error) => !aborted && verdict::is_permanent(error),
        };
    }

    fn report_failure(&self, part: &Part, error: &Error, suspects: Vec<u32>, preparing: bool) {
        let permanent = verdict::is_permanent(error);
        tracing::error!(job = %part.job, code = error.code().id, permanent, ?suspects, "{}", error.chain());
        let failure = Some(gang::failure(error));
        self.around.reporter.send(part, Report::Failed(GangFailed { failure, permanent, suspects, preparing }));
    }
}
