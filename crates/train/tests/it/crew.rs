//! Workers that outlive gangs: each has its own memory, its rank of a generation is a thread, and whoever is told to die
//! gives its group up at a phase of a step. Beside them what records steps, and what every rank was fed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pleach_base::{Error, Fence, Generation, Result, SystemClock, TaskName, Term};
use pleach_comm::Collective as _;
use pleach_train::{
    CommitRow, DurableRow, EvalRow, FeedRow, FeedSink, Heads, JobContext, Observer, Outcome, Phase, Record, Recorded,
    ResumedFrom, StepRow, StopSignal, TaskStatus, Warm, run_job,
};
use serde_json::Value;

use crate::fixture::parse;
use crate::hub::{self, Seat};

/// Records that are kept of a task.
const KEPT: usize = 16;

/// Keeps what a coordinator would.
#[derive(Default)]
pub(crate) struct Recorder {
    heads: Mutex<Heads>,
    /// Everything that was told, in order.
    pub(crate) told: Mutex<Vec<CommitRow>>,
    /// It does not answer: what is told is kept, and not recorded.
    pub(crate) away: std::sync::atomic::AtomicBool,
}

impl Recorder {
    fn commit(&self, row: &CommitRow, recorded: &Recorded) {
        self.told.lock().unwrap().push(row.clone());
        if self.away.load(Ordering::SeqCst) {
            return;
        }
        let mut heads = self.heads.lock().unwrap();
        let records = heads.entry(row.task.clone()).or_default();
        if records.last().is_some_and(|last| last.fence > row.fence) {
            return;
        }
        records.retain(|record| record.step < row.step.0);
        records.push(Record { step: row.step.0, fence: row.fence, digest: row.digest.clone() });
        let surplus = records.len().saturating_sub(KEPT);
        records.drain(..surplus);
        recorded.note(&row.task, row.step.0);
    }

    pub(crate) fn head(&self) -> u64 {
        self.heads.lock().unwrap().get(&TaskName::from("a")).and_then(|records| records.last()).map_or(0, |r| r.step)
    }

    pub(crate) fn steps_told_by(&self, generation: u64) -> Vec<u64> {
        let told = self.told.lock().unwrap();
        told.iter().filter(|row| row.fence.generation.0 == generation).map(|row| row.step.0).collect()
    }
}

/// Lines of all feed logs.
#[derive(Default)]
pub(crate) struct Fed(Mutex<Vec<FeedRow>>);

impl FeedSink for Fed {
    fn append(&self, row: &FeedRow) -> Result<()> {
        self.0.lock().unwrap().push(row.clone());
        Ok(())
    }
}

impl Fed {
    /// Where a generation went on, and from what; the same on all of its ranks.
    pub(crate) fn resumed(&self, generation: u64) -> (u64, ResumedFrom, u64) {
        let rows = self.0.lock().unwrap();
        let mut found = rows.iter().filter_map(|row| match row {
            FeedRow::Resume { generation: of, step, source, made_generation, .. } if *of == generation => {
                Some((*step, *source, *made_generation))
            }
            _ => None,
        });
        let first = found.next().expect("the generation settled");
        assert!(found.all(|other| other == first), "ranks went on from different states");
        first
    }

    /// The samples that the final state has seen, step by step: from the last generation back along what each went on
    /// from. Every rank's lines of a step are put together in the order of lanes.
    pub(crate) fn history(&self, last_generation: u64, last_step: u64) -> Vec<Vec<u64>> {
        let mut steps = BTreeMap::new();
        let (mut generation, mut until) = (last_generation, last_step);
        loop {
            let (from, source, made_by) = self.resumed(generation);
            for step in from + 1..=until {
                steps.insert(step, self.lanes(generation, step));
            }
            if source == ResumedFrom::Fresh {
                break;
            }
            (generation, until) = (made_by, from);
        }
        assert!(steps.keys().copied().eq(1..=last_step), "{:?}", steps.keys());
        steps.into_values().collect()
    }

    fn lanes(&self, generation: u64, step: u64) -> Vec<u64> {
        let mut lanes = BTreeMap::new();
        for row in self.0.lock().unwrap().iter() {
            if let FeedRow::Fed { generation: of, step: at, lanes: fed, .. } = row
                && (*of, *at) == (generation, step)
            {
                for lane in fed {
                    assert!(lanes.insert(lane.lane, lane.samples.clone()).is_none(), "lane {} twice", lane.lane);
                }
            }
        }
        assert!(!lanes.is_empty(), "generation {generation} was fed nothing for step {step}");
        lanes.into_values().flatten().collect()
    }
}

/// What a rank does beside training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Gives up its group at a phase of the step after so many.
    DieAt(u64, Phase),
    /// Does so when its first upload begins.
    DieUploading,
    /// Gets what it is sent damaged.
    Damages,
    /// Asks for a yield once it has made this step.
    YieldAfter(u64),
}

/// One rank's ears.
struct Ears {
    deed: Option<Deed>,
    stop: StopSignal,
    /// Steps done.
    at: AtomicU64,
    recorder: Arc<Recorder>,
    recorded: Recorded,
    heard: Arc<Heard>,
}

/// What one rank heard.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) steps: Mutex<Vec<StepRow>>,
    pub(crate) evals: Mutex<Vec<EvalRow>>,
    pub(crate) durable: Mutex<Vec<u64>>,
}

impl Observer for Ears {
    fn step(&self, row: &StepRow) {
        self.at.store(row.step, Ordering::SeqCst);
        self.heard.steps.lock().unwrap().push(row.clone());
        if self.deed == Some(Deed::YieldAfter(row.step)) {
            self.stop.yield_now("somebody joins");
        }
    }
    fn commit(&self, row: &CommitRow) {
        self.recorder.commit(row, &self.recorded);
    }
    fn phase(&self, phase: Phase) {
        let deed = match phase {
            Phase::DuringUpload => Deed::DieUploading,
            phase => Deed::DieAt(self.at.load(Ordering::SeqCst), phase),
        };
        if self.deed == Some(deed) {
            self.stop.abort("killed");
        }
    }
    fn eval(&self, row: &EvalRow) {
        self.heard.evals.lock().unwrap().push(row.clone());
    }
    fn durable(&self, row: &DurableRow) {
        self.heard.durable.lock().unwrap().push(row.step.0);
    }
    fn task(&self, status: &TaskStatus) {
        self.at.store(status.step, Ordering::SeqCst);
    }
}

/// How one rank's part ended.
pub(crate) struct Part {
    pub(crate) outcome: Result<Outcome>,
    pub(crate) heard: Arc<Heard>,
}

impl Part {
    pub(crate) fn end(&self) -> String {
        self.outcome.as_ref().map_or_else(|error| error.code().id.to_owned(), |outcome| format!("{outcome:?}"))
    }
}

/// Workers by name, and what they work on.
pub(crate) struct Crew {
    pub(crate) job: Value,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) fed: Arc<Fed>,
    workers: BTreeMap<&'static str, Warm>,
    generation: u64,
}

impl Crew {
    pub(crate) fn new(job: Value) -> Self {
        tch::set_num_threads(1);
        Self { job, recorder: Arc::default(), fed: Arc::default(), workers: BTreeMap::new(), generation: 0 }
    }

    /// Forgets a worker and all that it holds.
    pub(crate) fn dies(&mut self, name: &str) {
        self.workers.remove(name);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Trains in a new generation of `names`, by rank, until every part has ended.
    pub(crate) fn train(&mut self, names: &[&'static str], deeds: &[(usize, Deed)]) -> Vec<Part> {
        self.generation += 1;
        let warms: Vec<_> = names.iter().map(|name| self.workers.remove(name).unwrap_or_default()).collect();
        let heads = self.recorder.heads.lock().unwrap().clone();
        let gang = &Gang {
            job: self.job.clone(),
            recorder: Arc::clone(&self.recorder),
            fed: Arc::clone(&self.fed),
            generation: self.generation,
        };
        let ended: Vec<(Part, Warm)> = std::thread::scope(|scope| {
            let parts: Vec<_> = warms
                .into_iter()
                .zip(hub::seats(names.len()))
                .map(|(warm, seat)| {
                    let deed = deeds.iter().find(|(of, _)| *of == seat.rank()).map(|(_, deed)| *deed);
                    let heads = heads.clone();
                    scope.spawn(move || gang.part(seat, heads, deed, warm))
                })
                .collect();
            parts.into_iter().map(|part| part.join().unwrap()).collect()
        });
        let mut parts = Vec::new();
        for (name, (part, warm)) in names.iter().zip(ended) {
            self.workers.insert(name, warm);
            parts.push(part);
        }
        parts
    }
}

/// What the ranks of one generation share.
struct Gang {
    job: Value,
    recorder: Arc<Recorder>,
    fed: Arc<Fed>,
    generation: u64,
}

impl Gang {
    fn part(&self, seat: Seat, heads: Heads, deed: Option<Deed>, mut warm: Warm) -> (Part, Warm) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, recorded, heard) = (StopSignal::default(), Recorded::default(), Arc::new(Heard::default()));
        stop.attach(seat.abort_handle());
        if deed == Some(Deed::Damages) {
            seat.damages();
        }
        let ears = Ears {
            deed,
            stop: stop.clone(),
            at: AtomicU64::new(0),
            recorder: Arc::clone(&self.recorder),
            recorded: recorded.clone(),
            heard: Arc::clone(&heard),
        };
        let job = parse(&self.job);
        let cx = JobContext {
            tenant: "default".into(),
            id: job.metadata.name.as_str().into(),
            job,
            fence: Fence { term: Term(1), generation: Generation(self.generation) },
            heads,
            recorded,
            feed: Some(Arc::<Fed>::clone(&self.fed)),
            group: &seat,
            observer: Arc::new(ears),
            stop,
            runtime: runtime.handle().clone(),
            clock: SystemClock::shared(),
        };
        let outcome: std::result::Result<_, Error> = run_job(cx, &mut warm);
        drop(seat);
        (Part { outcome, heard }, warm)
    }
}

/// The steps that the store has folders of, with the generations that wrote them.
pub(crate) fn stored_steps(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder.join("store/default/tiny/a/steps"))
        .map(|found| found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}
