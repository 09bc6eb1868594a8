//! A task's data: opened, and fed lane by lane from any step on.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, TaskName, code};
use pleach_data::{
    Batch, Cursor, Dataset, Encoder, Example, Limits, Loader, OpenOptions, Order, Plan, RowCache, Side, Understood,
};
use pleach_methods::AdapterConfig;
use pleach_nn::BackboneConfig;
use pleach_spec::job::{DataSpec, DataTask, EvalSpec, TrainSpec, is_remote};

use super::course::Rows;
use super::keepalive;
use super::model::{Encoders, Model};
use super::ready::Preparation;
use super::remote::Remote;
use crate::engine::{Course, StepBatch};
use crate::eval::EvalSet;

/// What rows beside a task's own are drawn under.
const BESIDE: &str = "beside";

/// Lane batches that are ready before they are asked for.
const AHEAD: usize = 4;

/// The training rows of a task and their order.
#[derive(Debug)]
pub(super) struct TaskData {
    dataset: Arc<Dataset>,
    encoder: Arc<Encoder>,
    order: Order,
    /// The rows of every task, where a sequence of tasks is learnt.
    parts: Vec<Vec<u64>>,
    /// Rows that are in every step beside the task's own.
    beside: Option<Beside>,
    feed: Option<Feed>,
}

/// Rows of a second source and their order.
#[derive(Debug)]
struct Beside {
    dataset: Arc<Dataset>,
    encoder: Arc<Encoder>,
    order: Order,
}

/// The lanes of this rank, read ahead.
#[derive(Debug)]
struct Feed {
    loader: Loader,
    beside: Option<Loader>,
    lanes: Range<u32>,
    /// The step that comes next.
    step: u64,
}

/// A source that was read, and the sha256 of what was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceDigest {
    pub(super) source: String,
    pub(super) digest: String,
}

/// What opening data needs from around it.
pub(super) struct Opener<'a> {
    cx: &'a Preparation,
    model: &'a dyn BackboneConfig,
    folder: &'a std::path::Path,
    adapter: &'a dyn AdapterConfig,
    sources: RefCell<Vec<SourceDigest>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(cx: &'a Preparation, model: &'a Model, adapter: &'a dyn AdapterConfig) -> Self {
        Self { cx, model: model.config(), folder: &model.folder, adapter, sources: RefCell::default() }
    }

    /// All sources that were opened, in order: to be compared with those of other ranks.
    pub(super) fn into_sources(self) -> Vec<SourceDigest> {
        self.sources.into_inner()
    }

    fn limits(&self, task: DataTask) -> Limits {
        let (info, front) = (self.model.info(), self.adapter.virtual_tokens());
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Limits {
            vocab_size: small(info.vocab_size),
            num_labels: (task == DataTask::SequenceClassification).then_some(small(info.num_labels)),
            // Segments are sequences of their own: a document may be longer than any.
            max_positions: match self.adapter.segments() {
                Some(_) => None,
                None => Some(small(info.max_positions.saturating_sub(front.prompt + front.prefix))),
            },
        }
    }

    /// What rows may say of their tokens.
    fn understood(&self) -> Understood {
        let kinds = self.adapter.modalities();
        let (modalities, width) = kinds.map_or((Vec::new(), 0), |kinds| (kinds.tokens, kinds.width));
        Understood { segments: self.adapter.segments().is_some(), modalities, width }
    }

    fn encoder(&self, encoders: &mut Encoders, spec: &DataSpec, side: Side, rows: &str) -> Result<Arc<Encoder>> {
        let (limits, understood, tasks) = (self.limits(spec.task), self.understood(), self.adapter.row_tasks());
        // Tasks mask a row alike.
        let (masking, key) =
            (self.adapter.masking(), Key::seed(self.cx.job.spec.train.seed).named("masks").named(rows));
        let what = format!("{spec:?} {side:?} {limits:?} {understood:?} {tasks:?} {masking:?} {key:?}");
        encoders.get(&what, || {
            let encoder = Encoder::open(spec, self.folder, side, limits)?.masking(masking, key);
            Ok(encoder.understanding(understood).with_tasks(tasks))
        })
    }

    /// Opens the rows that are in every step beside a task's own, in an order over as many steps.
    fn beside(
        &self,
        encoders: &mut Encoders,
        spec: &DataSpec,
        train: &TrainSpec,
        name: &TaskName,
        own: &Plan,
    ) -> Result<Option<Beside>> {
        let Some(source) = self.adapter.beside() else { return Ok(None) };
        let encoder = self.encoder(encoders, spec, Side::Both, BESIDE)?;
        let dataset = self.open(source, spec, &encoder)?;
        let plan = Plan::new(dataset.len(), train.global_batch, own.lanes(), None, Some(own.total_steps()));
        let plan = plan.map_err(|error| error.at(source))?;
        let order = Order::new(plan, train.seed, &TaskName::from(format!("{name}/{BESIDE}").as_str()), spec);
        Ok(Some(Beside { dataset: Arc::new(dataset), encoder, order }))
    }

    fn open(&self, source: &str, spec: &DataSpec, encoder: &Encoder) -> Result<Dataset> {
        let rows = RowCache::of_user();
        let mut options = OpenOptions { max_bad_rows: spec.max_bad_rows, rows, ..OpenOptions::default() };
        if is_remote(source) {
            options.fetch = Some(Arc::new(Remote::of(self.cx)));
            options.cache = Some(pleach_data::copies_folder()?);
        }
        let dataset = keepalive::during(self.cx.observer.as_ref(), || Dataset::open_source(source, encoder, &options))?;
        let digest = dataset.digest().to_owned();
        self.sources.borrow_mut().push(SourceDigest { source: source.to_owned(), digest });
        Ok(dataset)
    }

    /// Opens a task's training rows.
    pub(super) fn task(
        &self,
        encoders: &mut Encoders,
        spec: &DataSpec,
        train: &TrainSpec,
        name: &TaskName,
        splits: Option<&[Vec<u32>]>,
    ) -> Result<TaskData> {
        let encoder = self.encoder(encoders, spec, Side::Both, "own")?;
        let dataset = self.open(&spec.source, spec, &encoder)?;
        let lanes = train.lanes.unwrap_or(1);
        let (order, rows) = match splits {
            None => {
                let order = || Order::open(&dataset, &encoder, train, lanes, name, spec);
                (keepalive::during(self.cx.observer.as_ref(), order)?, Vec::new())
            }
            Some(splits) => {
                let find = || Order::by_class(&dataset, &encoder, train, lanes, name, spec, splits);
                keepalive::during(self.cx.observer.as_ref(), find)?
            }
        };
        let beside = self.beside(encoders, spec, train, name, order.plan())?;
        Ok(TaskData { dataset: Arc::new(dataset), encoder, order, parts: rows, beside, feed: None })
    }

    /// Reads and encodes what a task is evaluated on.
    pub(super) fn eval(&self, encoders: &mut Encoders, spec: &DataSpec, eval: &EvalSpec) -> Result<EvalSet> {
        let rows = self.all(encoders, &eval.source, spec, Side::Both)?;
        if spec.task != DataTask::Retrieval {
            return Ok(EvalSet::rows(rows));
        }
        let more = match &eval.candidates {
            Some(source) => self.all(encoders, source, spec, Side::Passage)?,
            None => Vec::new(),
        };
        Ok(EvalSet::retrieval(rows, more))
    }

    fn all(&self, encoders: &mut Encoders, source: &str, spec: &DataSpec, side: Side) -> Result<Vec<Example>> {
        let encoder = self.encoder(encoders, spec, side, "own")?;
        let dataset = self.open(source, spec, &encoder)?;
        let encode = || (0..dataset.len()).map(|row| encoder.encode(&dataset.row(row)?)).collect();
        keepalive::during(self.cx.observer.as_ref(), encode)
    }
}

impl TaskData {
    /// How steps are cut.
    pub(super) fn plan(&self) -> &Plan {
        self.order.plan()
    }

    /// Malformed rows that were skipped.
    pub(super) fn bad_rows(&self) -> u64 {
        self.dataset.bad_count()
    }

    /// sha256 of the dataset's manifest.
    pub(super) fn digest(&self) -> &str {
        self.dataset.digest()
    }

    /// Epochs done after `step` steps, with fraction.
    pub(super) fn epoch(&self, step: u64) -> f64 {
        self.plan().epochs_done(step)
    }

    /// The course over these classes, with what it is evaluated on.
    pub(super) fn course(&self, splits: &[Vec<u32>], eval: Option<&EvalSet>, device: tch::Device) -> Course {
        let rows = Rows {
            dataset: Arc::clone(&self.dataset),
            encoder: Arc::clone(&self.encoder),
            parts: self.parts.clone(),
            lanes: self.plan().lanes(),
            eval: eval.map(|set| set.by_class(splits)).unwrap_or_default(),
            device,
        };
        let (lanes, phases) = (self.plan().lanes(), self.plan().phases());
        Course { splits: splits.to_vec(), phases, lanes, rows: Arc::new(rows) }
    }

    /// The part of step `step` (from 0) that lies in `lanes`.
    pub(super) fn batch(&mut self, step: u64, lanes: Range<u32>) -> Result<StepBatch> {
        let mut feed = match self.feed.take() {
            Some(feed) if feed.step == step && feed.lanes == lanes => feed,
            _ => self.feed_from(step, lanes.clone())?,
        };
        let mut own: Vec<(u32, Batch)> = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let batch = next(&mut feed.loader, step, lane)?;
            own.push(match &mut feed.beside {
                None => (lane, batch),
                Some(loader) => (lane, batch.beside(next(loader, step, lane)?)),
            });
        }
        feed.step += 1;
        self.feed = Some(feed);
        let rows = |lane| {
            let positions = self.plan().lane(step, lane).positions;
            (positions.end - positions.start) as usize
        };
        Ok(StepBatch { lanes: own, lane_rows: (0..self.plan().lanes()).map(rows).collect() })
    }

    /// Begins to read these lanes ahead.
    fn feed_from(&self, step: u64, lanes: Range<u32>) -> Result<Feed> {
        let start = |dataset: &Arc<Dataset>, encoder: &Arc<Encoder>, order: &Order| {
            let work = Cursor { step }.work(order.clone(), lanes.clone());
            Loader::start(Arc::clone(dataset), Arc::clone(encoder), work, AHEAD)
        };
        let loader = start(&self.dataset, &self.encoder, &self.order)?;
        let beside =
            self.beside.as_ref().map(|beside| start(&beside.dataset, &beside.encoder, &beside.order)).transpose()?;
        Ok(Feed { loader, beside, lanes, step })
    }
}

/// What comes next, which must be of this step and lane.
fn next(loader: &mut Loader, step: u64, lane: u32) -> Result<Batch> {
    let next = loader.next().unwrap_or_else(|| {
        Err(code::INTERNAL.error(format!("the reader ended before lane {lane} of step {}", step + 1)))
    })?;
    if (next.at.step, next.at.lane) != (step, lane) {
        let (found, of) = (next.at.lane, next.at.step + 1);
        return Err(code::INTERNAL.error(format!("lane {lane} of step {}: found {found} of {of}", step + 1)));
    }
    Ok(next.batch)
}
