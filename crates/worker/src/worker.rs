//! The worker's own state: what it works on, and what it does about commands, ends of jobs, signals and silence.

use std::sync::Arc;
use std::time::Duration;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Error, Fence, Generation, Kind, Result, SystemClock, Term, UlidSource, code};
use pleach_comm::RendezvousServer;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_response::Message as Command;
use pleach_proto::v1::{Assignment, Drained, Finished, GangFailed, Stop, StopMode};
use pleach_train::{Outcome, StopSignal, Warm};
use tokio::sync::mpsc;

use crate::cli::Args;
use crate::gang::{self, Done, Surroundings, Work};
use crate::identity::Identity;
use crate::reporter::{Part, Reporter};
use crate::session::{Pulse, Session};
use crate::{client, verdict};

/// How long a worker that leaves waits for its last reports to be taken.
const LAST_REPORTS: Duration = Duration::from_secs(10);
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// Serves a coordinator until `shutdown` is requested (or, with `--once`, one job has ended).
///
/// # Errors
/// Bad arguments; `COMM_SETUP` when the rendezvous cannot be served; what the coordinator refuses for good (a wrong
/// token, another version).
pub async fn run(args: Args, shutdown: Shutdown) -> Result<()> {
    let clock = SystemClock::shared();
    let ids = UlidSource::new(Arc::clone(&clock));
    let rendezvous = RendezvousServer::start(&args.listen_host, 0)?;
    let identity = Identity::new(&args, &ids, rendezvous.port())?;
    let client = client::connect(&args)?;
    let pulse = Pulse::new(Arc::clone(&clock));
    let (fenced, mut refused) = mpsc::unbounded_channel();
    let reporter = Reporter::start(client.clone(), identity.clone(), fenced);
    let mut session = Session::start(client, identity.clone(), args.coordinator.clone(), Arc::clone(&pulse));
    let around = Surroundings {
        identity,
        bind: args.comm_bind.clone(),
        checked: args.checked,
        clock,
        pulse,
        reporter: reporter.clone(),
        rows: session.rows.clone(),
    };
    let (tell_done, mut done) = mpsc::unbounded_channel();
    let mut worker = Worker::new(around, tell_done, Duration::from_secs(args.grace));
    let mut look = tokio::time::interval(LOOK_AROUND);
    while !worker.is_over(args.once) {
        tokio::select! {
            command = session.commands.recv() => match command {
                Some(Ok(command)) => worker.obey(command),
                Some(Err(error)) => return Err(error),
                None => return Err(code::INTERNAL.error("the session task is gone")),
            },
            Some(end) = done.recv() => worker.ended(end),
            Some(part) = refused.recv() => worker.fenced(&part),
            () = shutdown.requested(), if !worker.leaving => worker.leave(shutdown.reason().unwrap_or("asked to stop")),
            _ = look.tick() => worker.mind_silence(),
        }
    }
    if !reporter.flush(LAST_REPORTS).await {
        tracing::warn!("the coordinator did not take the last reports within {} s", LAST_REPORTS.as_secs());
    }
    Ok(())
}

struct Current {
    part: Part,
    stop: StopSignal,
}

struct Worker {
    around: Surroundings,
    tell_done: mpsc::UnboundedSender<Done>,
    grace: Duration,
    current: Option<Current>,
    /// A newer assignment that waits for the current part to end.
    next: Option<Assignment>,
    /// The part that ended last. Its order may come again while the coordinator waits for the other ranks.
    last: Option<Part>,
    warm: Warm,
    leaving: bool,
    parts_ended: u64,
}

impl Worker {
    fn new(around: Surroundings, tell_done: mpsc::UnboundedSender<Done>, grace: Duration) -> Self {
        Self {
            around,
            tell_done,
            grace,
            current: None,
            next: None,
            last: None,
            warm: Warm::default(),
            leaving: false,
            parts_ended: 0,
        }
    }

    fn is_over(&self, once: bool) -> bool {
        self.current.is_none() && (self.leaving || (once && self.parts_ended > 0))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Assignment(assignment) => self.assigned(assignment),
            Command::Stop(stop) => self.stop(&stop),
            Command::Ack(_) | Command::Prepare(_) => {}
        }
    }

    fn assigned(&mut self, assignment: Assignment) {
        let part = Work::part_of(&assignment);
        if self.leaving {
            let error = code::WORKER_LOST.error("the worker is draining");
            return self.report_failure(&part, &error, Vec::new());
        }
        match &self.current {
            // How it ended is told by the report, which is repeated until it is heard.
            None if self.last.as_ref() == Some(&part) => {}
            None => self.begin(assignment),
            // Sent again after a reconnect.
            Some(current) if current.part == part => {}
            Some(current) => {
                current.stop.abort(format!("superseded by {} of job {}", part.fence, part.job));
                self.next = Some(assignment);
            }
        }
    }

    fn begin(&mut self, assignment: Assignment) {
        let part = Work::part_of(&assignment);
        let stop = StopSignal::default();
        let started = Work::parse(&assignment).and_then(|work| {
            let warm = std::mem::take(&mut self.warm);
            gang::start(work, self.around.clone(), stop.clone(), warm, self.tell_done.clone())
        });
        match started {
            Ok(()) => {
                self.around.pulse.works_on(Some(part.clone()));
                self.current = Some(Current { part, stop });
            }
            Err(error) => self.report_failure(&part, &error, Vec::new()),
        }
    }

    fn stop(&mut self, stop: &Stop) {
        let meant = |part: &Part| {
            let fence = Fence { term: Term(stop.term), generation: Generation(stop.generation) };
            stop.job.is_empty()
                || (part.job.as_str() == stop.job && part.tenant.as_str() == stop.tenant && part.fence == fence)
        };
        if self.next.as_ref().is_some_and(|next| meant(&Work::part_of(next))) {
            self.next = None;
        }
        let Some(current) = self.current.as_ref().filter(|current| meant(&current.part)) else { return };
        match stop.mode() {
            StopMode::Abort => current.stop.abort(stop.reason.clone()),
            StopMode::Drain | StopMode::Yield | StopMode::Unspecified => current.stop.drain(stop.reason.clone()),
        }
    }

    /// The coordinator takes no reports of this part any more: a newer generation exists.
    fn fenced(&mut self, part: &Part) {
        if let Some(current) = self.current.as_ref().filter(|current| current.part == *part) {
            current.stop.abort("a newer generation took over");
        }
    }

    fn leave(&mut self, reason: &str) {
        tracing::info!("{reason}: finishing the step and leaving");
        self.leaving = true;
        self.next = None;
        self.around.pulse.drains();
        if let Some(current) = &self.current {
            current.stop.drain(reason);
        }
    }

    /// Training does not outlive the coordinator for long: another generation may be under way elsewhere.
    fn mind_silence(&mut self) {
        let silence = self.around.pulse.silence();
        if silence < self.grace {
            return;
        }
        if let Some(current) = self.current.as_ref().filter(|current| !current.stop.is_draining()) {
            tracing::warn!("no word from the coordinator for {} s: stopping with a checkpoint", silence.as_secs());
            current.stop.drain(format!("no word from the coordinator for {} s", silence.as_secs()));
        }
    }

    fn ended(&mut self, done: Done) {
        let aborted = self.current.take().is_some_and(|current| current.stop.is_aborted());
        self.warm = done.warm;
        self.last = Some(done.part.clone());
        self.parts_ended += 1;
        match &done.outcome {
            Ok(Outcome::Finished) => self.around.reporter.send(&done.part, Report::Finished(Finished {})),
            Ok(Outcome::Drained) => self.around.reporter.send(&done.part, Report::Drained(Drained {})),
            Err(error) if aborted || error.kind() == Kind::Fenced => {
                tracing::info!(job = %done.part.job, reason = %error.chain(), "left generation {}", done.part.fence);
            }
            Err(error) => self.report_failure(&done.part, error, done.suspects),
        }
        self.around.pulse.works_on(None);
        if let Some(next) = self.next.take() {
            self.assigned(next);
        }
    }

    fn report_failure(&self, part: &Part, error: &Error, suspects: Vec<u32>) {
        let permanent = verdict::is_permanent(error);
        tracing::error!(job = %part.job, code = error.code().id, permanent, "{}", error.chain());
        let failure = Some(gang::failure(error));
        self.around.reporter.send(part, Report::Failed(GangFailed { failure, permanent, suspects }));
    }
}
