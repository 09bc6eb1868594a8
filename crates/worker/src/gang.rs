//! One part in one generation of a job, on its own thread: joins the gang, trains, and says how it ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pleach_base::{Error, Fence, Generation, Result, ResultExt as _, SharedClock, Term, code};
use pleach_comm::{Bind, Collective, GroupOptions, StoreAddr};
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::session_request::Message;
use pleach_proto::v1::{Assignment, Ready, SessionRequest};
use pleach_spec::Job;
use pleach_train::{DurableRow, EvalRow, JobContext, Level, Observer, Outcome, StepRow, StopSignal, TaskStatus, Warm};
use tch::Device;
use tokio::sync::mpsc;

use crate::convert;
use crate::identity::Identity;
use crate::reporter::{Part, Reporter};
use crate::session::{self, Pulse};

/// An assignment, checked.
pub(crate) struct Work {
    pub(crate) part: Part,
    pub(crate) job: Job,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) store: StoreAddr,
}

impl Work {
    /// The part that an assignment is about, readable even when its spec is not.
    pub(crate) fn part_of(assignment: &Assignment) -> Part {
        Part {
            tenant: assignment.tenant.as_str().into(),
            job: assignment.job.as_str().into(),
            fence: Fence { term: Term(assignment.term), generation: Generation(assignment.generation) },
        }
    }

    pub(crate) fn parse(assignment: &Assignment) -> Result<Self> {
        let job = serde_json::from_str(&assignment.spec_json)
            .or_code(code::JOB_SYNTAX, || format!("job {}: the resolved spec cannot be read", assignment.job))?;
        let port = u16::try_from(assignment.rendezvous_port)
            .or_code(code::INTERNAL, || format!("job {}: rendezvous port out of range", assignment.job))?;
        Ok(Self {
            part: Self::part_of(assignment),
            job,
            rank: assignment.rank as usize,
            world: assignment.world as usize,
            store: StoreAddr::new(assignment.rendezvous_host.clone(), port),
        })
    }
}

/// What every part needs from the process.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) identity: Identity,
    pub(crate) bind: Option<String>,
    pub(crate) checked: bool,
    pub(crate) clock: SharedClock,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) reporter: Reporter,
    pub(crate) rows: mpsc::Sender<SessionRequest>,
}

/// How a part ended.
pub(crate) struct Done {
    pub(crate) part: Part,
    pub(crate) outcome: Result<Outcome>,
    /// Ranks whose connection was gone when a collective failed.
    pub(crate) suspects: Vec<u32>,
    /// Model and tokenizer, for the next generation of the same job.
    pub(crate) warm: Warm,
}

/// Starts the training thread; `done` hears how it ended.
///
/// # Errors
/// `IO` when the system gives no thread.
pub(crate) fn start(
    work: Work,
    around: Surroundings,
    stop: StopSignal,
    warm: Warm,
    done: mpsc::UnboundedSender<Done>,
) -> Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let train = move || {
        let part = work.part.clone();
        let _ = done.send(take_part(work, &around, stop, warm, runtime).unwrap_or_else(|error| Done {
            part,
            outcome: Err(error),
            suspects: Vec::new(),
            warm: Warm::default(),
        }));
    };
    std::thread::Builder::new()
        .name("train".to_owned())
        .spawn(train)
        .map(drop)
        .or_code(code::IO, || "cannot start the training thread".to_owned())
}

fn take_part(
    work: Work,
    around: &Surroundings,
    stop: StopSignal,
    mut warm: Warm,
    runtime: tokio::runtime::Handle,
) -> Result<Done> {
    let threads = work.job.spec.workers.threads.unwrap_or(around.identity.threads).max(1);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    let part = work.part.clone();
    let group = join(&work, around)?;
    stop.attach(group.abort_handle());
    let observer = Arc::new(Bridge { part: part.clone(), rank: work.rank, around: around.clone() });
    let outcome = pleach_train::run_job(
        JobContext {
            tenant: part.tenant.clone(),
            id: part.job.clone(),
            job: work.job,
            fence: part.fence,
            group: group.as_ref(),
            observer,
            stop,
            runtime,
            clock: Arc::clone(&around.clock),
        },
        &mut warm,
    );
    let suspects = group.lost().into_iter().map(|rank| rank as u32).collect();
    Ok(Done { part, outcome, suspects, warm })
}

fn join(work: &Work, around: &Surroundings) -> Result<Box<dyn Collective>> {
    let device = around.identity.device;
    around.pulse.progress.fetch_add(1, Ordering::SeqCst);
    if work.world == 1 {
        return Ok(pleach_comm::local(device));
    }
    let part = &work.part;
    let prefix = format!("{}/{}/g{}", part.tenant, part.job, part.fence.generation);
    let mut options = GroupOptions::new(work.rank, work.world, prefix, work.store.clone());
    options.bind = around.bind.as_deref().map(Bind::parse);
    options.checked = around.checked;
    tracing::info!(
        "joining {}: RANK={} WORLD_SIZE={} MASTER_ADDR={} MASTER_PORT={}",
        options.prefix,
        work.rank,
        work.world,
        work.store.host,
        work.store.port
    );
    connect(&options, device)
}

fn connect(options: &GroupOptions, device: Device) -> Result<Box<dyn Collective>> {
    match device {
        Device::Cpu => pleach_comm::gloo(options),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => pleach_comm::nccl(options, index),
        other => Err(code::LIBTORCH
            .error(format!("--device {other:?}: this build has no collectives for it"))
            .hint("build `pleach-worker` with `--features cuda`")),
    }
}

/// Turns what the engine tells into messages.
struct Bridge {
    part: Part,
    rank: usize,
    around: Surroundings,
}

impl Bridge {
    /// Rows and lines may be lost when the coordinator is away for long; training never waits for them.
    fn stream(&self, message: Message) {
        let request = session::request(&self.around.identity, Some(&self.part), message);
        let _ = self.around.rows.try_send(request);
    }

    fn report(&self, report: Report) {
        self.around.reporter.send(&self.part, report);
    }

    /// What is the same on all ranks is told once.
    fn is_speaker(&self) -> bool {
        self.rank == 0
    }
}

impl Observer for Bridge {
    fn step(&self, row: &StepRow) {
        self.progress();
        if self.is_speaker() {
            self.stream(Message::Step(convert::step(row, self.part.fence, self.around.clock.as_ref())));
        }
    }

    fn eval(&self, row: &EvalRow) {
        self.progress();
        if self.is_speaker() {
            self.report(Report::Eval(convert::eval(row)));
        }
    }

    fn durable(&self, row: &DurableRow) {
        self.report(Report::Durable(convert::durable(row)));
    }

    fn task(&self, status: &TaskStatus) {
        if self.is_speaker() {
            self.report(Report::Task(convert::task(status)));
        }
    }

    fn ready(&self) {
        self.report(Report::Ready(Ready {}));
    }

    fn log(&self, level: Level, text: &str) {
        match level {
            Level::Info => tracing::info!(job = %self.part.job, "{text}"),
            Level::Warn => tracing::warn!(job = %self.part.job, "{text}"),
        }
        if self.is_speaker() || level == Level::Warn {
            let worker = &self.around.identity.id.name;
            self.stream(Message::Log(convert::log(level, text, worker, self.around.clock.as_ref())));
        }
    }

    fn progress(&self) {
        self.around.pulse.progress.fetch_add(1, Ordering::SeqCst);
    }
}

/// A copy of an error for a report.
pub(crate) fn failure(error: &Error) -> pleach_proto::v1::Failure {
    pleach_proto::status::to_failure(error)
}
