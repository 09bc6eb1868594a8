//! The dataset of a task, read here as a worker reads it: the same rows under the same numbers.

use std::path::Path;
use std::sync::Arc;

use pleach_base::{Error, Result, TaskName, code};
use pleach_data::{Dataset, Encoder, Limits, OpenOptions, Order, RowCache, Side, Understood};
use pleach_methods::{AdapterConfig, head_options, parse_adapter};
use pleach_nn::ModelDir;
use pleach_spec::job::{DataTask, TaskSpec, is_remote};
use pleach_store::Source;
use tokio::runtime::Handle;

use super::Subject;
use super::remote::Remote;

/// The rows of a task and their order.
pub(super) struct Rows {
    pub(super) dataset: Arc<Dataset>,
    pub(super) order: Order,
}

pub(super) fn open(subject: &Subject, index: usize, task: &TaskSpec) -> Result<Rows> {
    let job = &subject.job;
    let data = task.data.as_ref().or(job.spec.data.as_ref()).ok_or_else(|| {
        code::BAD_VALUE.error(format!("spec.tasks[{index}].data: neither the task nor spec.data names any"))
    })?;
    let path = &job.spec.backbone.path;
    let folder = Path::new(path.strip_prefix("file://").unwrap_or(path));
    let here = |error: Error| error.at("spec.backbone.path");
    let model =
        pleach_nn::configure(&ModelDir::config_only(folder).map_err(here)?, &head_options(job)?).map_err(here)?;
    let adapter = parse_adapter(job, index)?;
    let (info, front) = (model.info(), adapter.virtual_tokens());
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let limits = Limits {
        vocab_size: small(info.vocab_size),
        num_labels: (data.task == DataTask::SequenceClassification).then_some(small(info.num_labels)),
        max_positions: match adapter.segments() {
            Some(_) => None,
            None => Some(small(info.max_positions.saturating_sub(front.prompt + front.prefix))),
        },
    };
    let encoder = Encoder::open(data, folder, Side::Both, limits)?
        .understanding(understood(adapter.as_ref()))
        .with_tasks(adapter.row_tasks());
    let rows = RowCache::of_user();
    let mut options = OpenOptions { max_bad_rows: data.max_bad_rows, rows, ..OpenOptions::default() };
    if is_remote(&data.source) {
        let source = Source::open(&data.source, &subject.store_options())?;
        options.fetch = Some(Arc::new(Remote { source, runtime: Handle::current() }));
        options.cache = Some(pleach_data::copies_folder()?);
    }
    let dataset = Arc::new(Dataset::open_source(&data.source, &encoder, &options)?);
    let (train, name) = (&job.spec.train, TaskName::from(task.name.as_str()));
    let lanes = train.lanes.unwrap_or(1);
    let order = match adapter.sequence() {
        None => Order::open(&dataset, &encoder, train, lanes, &name, data)?,
        Some(sequence) => {
            Order::by_class(&dataset, &encoder, train, lanes, &name, data, &sequence.splits(model.as_ref())?)?.0
        }
    };
    Ok(Rows { dataset, order })
}

/// What rows may say of their tokens, given who reads them.
pub(crate) fn understood(adapter: &dyn AdapterConfig) -> Understood {
    let segments = adapter.segments().is_some();
    let kinds = adapter.modalities();
    let (modalities, width) = kinds.map_or((Vec::new(), 0), |kinds| (kinds.tokens, kinds.width));
    Understood { segments, modalities, width }
}
