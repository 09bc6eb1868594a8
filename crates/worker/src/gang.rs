//! What runs on the training thread: getting ready for a job, and one part in one generation of it. A part joins the gang,
//! trains, and says how it ended and whom it waited for in vain.

use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Error, Fence, Generation, Result, ResultExt as _, SharedClock, Term, WorkerId, code};
use pleach_comm::{Bind, Collective, Forming, GroupOptions, StoreAddr};
use pleach_proto::v1::{Assignment, Member, Prepare, SessionRequest};
use pleach_spec::Job;
use pleach_train::{FeedSink, Heads, JobContext, Outcome, Preparation, Recorded, StopSignal, Warm};
use tch::Device;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::bridge::Bridge;
use crate::convert;
use crate::fault::Faults;
use crate::heart::Heart;
use crate::identity::Identity;
use crate::pulse;
use crate::reporter::{Part, Reporter};
use crate::watchdog::{self, Watch};
use crate::watched::{Gauge, Watched};

/// An order, checked.
pub(crate) struct Work {
    pub(crate) part: Part,
    pub(crate) job: Job,
    pub(crate) members: Vec<Member>,
    pub(crate) kind: Kind,
}

/// What is to be done.
pub(crate) enum Kind {
    /// Get ready.
    Prepare,
    /// Train as one rank.
    Train { rank: usize, world: usize, store: StoreAddr, heads: Heads },
}

/// The part that an order is about, readable even when its spec is not.
pub(crate) fn part(tenant: &str, job: &str, term: u64, generation: u64) -> Part {
    let fence = Fence { term: Term(term), generation: Generation(generation) };
    Part { tenant: tenant.into(), job: job.into(), fence }
}

impl Work {
    pub(crate) fn assigned(order: &Assignment) -> Result<Self> {
        let port = u16::try_from(order.rendezvous_port)
            .or_code(code::INTERNAL, || format!("job {}: rendezvous port out of range", order.job))?;
        Ok(Self {
            part: part(&order.tenant, &order.job, order.term, order.generation),
            job: job(&order.job, &order.spec_json)?,
            members: order.members.clone(),
            kind: Kind::Train {
                rank: order.rank as usize,
                world: order.world as usize,
                store: StoreAddr::new(order.rendezvous_host.clone(), port),
                heads: convert::heads(&order.heads),
            },
        })
    }

    pub(crate) fn prepared(order: &Prepare) -> Result<Self> {
        Ok(Self {
            part: part(&order.tenant, &order.job, order.term, order.generation),
            job: job(&order.job, &order.spec_json)?,
            members: order.members.clone(),
            kind: Kind::Prepare,
        })
    }
}

fn job(id: &str, spec_json: &str) -> Result<Job> {
    serde_json::from_str(spec_json).or_code(code::JOB_SYNTAX, || format!("job {id}: the resolved spec cannot be read"))
}

/// What every part needs from the process.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) identity: Identity,
    pub(crate) bind: Option<String>,
    pub(crate) checked: bool,
    pub(crate) clock: SharedClock,
    pub(crate) heart: Arc<Heart>,
    pub(crate) reporter: Reporter,
    pub(crate) rows: mpsc::Sender<SessionRequest>,
    pub(crate) feed: Option<Arc<dyn FeedSink>>,
    pub(crate) faults: Option<Faults>,
}

/// How the work on an order ended.
pub(crate) struct Done {
    pub(crate) part: Part,
    pub(crate) end: End,
    /// Ranks that were waited for in vain and do not answer.
    pub(crate) suspects: Vec<u32>,
    /// Model, data and states, for the next generation of the same job.
    pub(crate) warm: Warm,
}

pub(crate) enum End {
    Prepared(Result<()>),
    Trained(Result<Outcome>),
}

/// Starts the training thread; `done` hears how it ended.
///
/// # Errors
/// `IO` when the system gives no thread.
pub(crate) fn start(
    work: Work,
    around: Surroundings,
    stop: StopSignal,
    mut warm: Warm,
    done: mpsc::UnboundedSender<Done>,
) -> Result<()> {
    let runtime = Handle::current();
    let train = move || {
        let part = work.part.clone();
        let threads = work.job.spec.workers.threads.unwrap_or(around.identity.threads).max(1);
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let mut suspects = Vec::new();
        let end = match work.kind {
            Kind::Prepare => End::Prepared(get_ready(work, &around, stop, runtime, &mut warm, &mut suspects)),
            Kind::Train { .. } => End::Trained(take_part(work, &around, stop, runtime, &mut warm, &mut suspects)),
        };
        let _ = done.send(Done { part, end, suspects, warm });
    };
    std::thread::Builder::new()
        .name("train".to_owned())
        .spawn(train)
        .map(drop)
        .or_code(code::IO, || "cannot start the training thread".to_owned())
}

/// Loads what can be loaded, then sees that all members answer: who cannot reach them should not join them.
fn get_ready(
    work: Work,
    around: &Surroundings,
    stop: StopSignal,
    runtime: Handle,
    warm: &mut Warm,
    suspects: &mut Vec<u32>,
) -> Result<()> {
    let gauge = Gauge::new(Arc::clone(&around.clock));
    let observer = Bridge::new(&work.part, usize::MAX, around, &gauge, Recorded::default());
    let preparation = Preparation {
        tenant: work.part.tenant.clone(),
        id: work.part.job.clone(),
        job: work.job,
        device: around.identity.device,
        observer: Arc::new(observer),
        stop: stop.clone(),
        runtime,
    };
    pleach_train::prepare(&preparation, warm)?;
    let others: Vec<Member> = work.members.into_iter().filter(|member| !is(member, &around.identity.id)).collect();
    // One that is busy, or just ends, is asked again.
    for pause in ASK_AGAIN {
        stop.check()?;
        *suspects = pulse::silent(&others, None);
        if suspects.is_empty() {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
    let names: Vec<&str> =
        others.iter().filter(|m| suspects.contains(&m.rank)).map(|member| member.worker.as_str()).collect();
    Err(code::COMM_PEER
        .error(format!("no answer from {}", names.join(", ")))
        .hint("the workers must reach each other at the addresses given by --listen-host"))
}

/// How long connecting the ranks of a gang may take, and waiting for all to come before that.
const CONNECTED: Duration = Duration::from_secs(10);
const ARRIVED: Duration = Duration::from_secs(60);
/// Pauses between questions to members of the gang that do not answer.
const ASK_AGAIN: [Duration; 3] = [Duration::from_millis(200); 3];

fn is(member: &Member, id: &WorkerId) -> bool {
    member.worker == id.name && member.incarnation == id.incarnation
}

fn take_part(
    work: Work,
    around: &Surroundings,
    stop: StopSignal,
    runtime: Handle,
    warm: &mut Warm,
    suspects: &mut Vec<u32>,
) -> Result<Outcome> {
    let Work { part, job, members, kind: Kind::Train { rank, world, store, heads } } = work else {
        return Err(code::INTERNAL.error("an order to get ready is not an order to train"));
    };
    let silent = || pulse::silent(&members, Some(rank as u32));
    let (gauge, forming) = (Gauge::new(Arc::clone(&around.clock)), Arc::<Forming>::default());
    let watch = Watch {
        part: part.clone(),
        rank: rank as u32,
        members: members.clone(),
        gauge: Arc::clone(&gauge),
        forming: Arc::clone(&forming),
        heart: Arc::clone(&around.heart),
        reporter: around.reporter.clone(),
    };
    let _leash = watchdog::start(watch)?;
    stop.attach(Arc::clone(&forming) as Arc<dyn pleach_comm::Abort>);
    let joined = {
        let _waiting = gauge.wait();
        join(&part, (rank, world), store, Arc::clone(&forming), around)
    };
    let group = joined.inspect_err(|_| {
        *suspects = forming.missing().into_iter().map(|rank| rank as u32).collect();
        if suspects.is_empty() && !stop.is_aborted() {
            *suspects = silent();
        }
    })?;
    let group = Watched { group, gauge: Arc::clone(&gauge) };
    stop.attach(group.abort_handle());
    let recorded = Recorded::default();
    let outcome = pleach_train::run_job(
        JobContext {
            tenant: part.tenant.clone(),
            id: part.job.clone(),
            job,
            fence: part.fence,
            group: &group,
            heads,
            recorded: recorded.clone(),
            feed: around.feed.clone(),
            observer: Arc::new(Bridge::new(&part, rank, around, &gauge, recorded)),
            stop: stop.clone(),
            runtime,
            clock: Arc::clone(&around.clock),
        },
        warm,
    );
    let broke = outcome.as_ref().is_err_and(|error| [code::COMM_PEER, code::COMM_TIMEOUT].contains(&error.code()));
    let lost = group.lost();
    // Closing it tells the others; then there is time to ask who is really gone: a rank that saw the end of this one closes
    // its connections too.
    drop(group);
    if broke && !stop.is_aborted() {
        *suspects = silent();
        tracing::info!(?lost, ?suspects, "the gang broke");
    }
    outcome
}

fn join(
    part: &Part,
    (rank, world): (usize, usize),
    store: StoreAddr,
    forming: Arc<Forming>,
    around: &Surroundings,
) -> Result<Box<dyn Collective>> {
    let device = around.identity.device;
    around.heart.progresses();
    if world == 1 {
        return Ok(pleach_comm::local(device));
    }
    // A generation is formed once, and a term makes those of different leaders differ.
    let prefix = format!("{}/{}/t{}g{}", part.tenant, part.job, part.fence.term.0, part.fence.generation);
    let mut options = GroupOptions::new(rank, world, prefix, store);
    options.bind = around.bind.as_deref().map(Bind::parse);
    options.checked = around.checked;
    options.forming = forming;
    // The watchdog finds who does not answer much sooner. A rank that answers may have to end its step first, and a
    // machine with many ranks is slow.
    (options.setup_timeout, options.arrival_timeout) = (CONNECTED, ARRIVED);
    tracing::info!(
        "joining {}: RANK={rank} WORLD_SIZE={world} MASTER_ADDR={} MASTER_PORT={}",
        options.prefix,
        options.store.host,
        options.store.port
    );
    let begun = around.clock.elapsed();
    let group = connect(&options, device)?;
    let took = around.clock.elapsed().saturating_sub(begun);
    tracing::info!("the gang of {world} stands after {} ms", took.as_millis());
    Ok(group)
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

/// A copy of an error for a report.
pub(crate) fn failure(error: &Error) -> pleach_proto::v1::Failure {
    pleach_proto::status::to_failure(error)
}
