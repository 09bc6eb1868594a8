//! The rows of a job whose task learns classes one group after the other: found by their labels.

use std::sync::Arc;

use pleach_base::Result;
use pleach_data::{Batch, Content, Dataset, Encoder, Example};
use tch::Device;

use crate::engine::{CourseRows, Labelled, lay_out};

/// Rows that go through the model together.
const MOST: usize = 64;

/// What a course reads.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) dataset: Arc<Dataset>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) parts: Vec<Vec<u64>>,
    pub(super) lanes: u32,
    /// What is evaluated, task by task.
    pub(super) eval: Vec<Vec<Example>>,
    pub(super) device: Device,
}

impl Rows {
    fn batches(&self, examples: &[Example]) -> Result<Vec<Labelled>> {
        let labelled = |examples: &[Example]| {
            let batch = Batch::collate(self.encoder.task(), examples)?;
            let (input, _) = lay_out(&batch.inputs, &batch.sample_ids, &batch.row_tasks, self.device, false);
            Ok(Labelled { input, classes: examples.iter().map(class).collect() })
        };
        examples.chunks(MOST).map(labelled).collect()
    }
}

pub(crate) fn class(example: &Example) -> u32 {
    match &example.content {
        Content::Classification { label, .. } => *label,
        Content::Lm(_) | Content::Pair { .. } | Content::Marked(..) => u32::MAX,
    }
}

impl CourseRows for Rows {
    fn train(&self, task: usize, lane: u32) -> Result<Vec<Labelled>> {
        let rows = &self.parts[task];
        let (lane, lanes) = (lane as usize, self.lanes as usize);
        let own = &rows[rows.len() * lane / lanes..rows.len() * (lane + 1) / lanes];
        let read = |row: &u64| self.encoder.encode(&self.dataset.row(*row)?);
        self.batches(&own.iter().map(read).collect::<Result<Vec<_>>>()?)
    }

    fn eval(&self, task: usize) -> Result<Vec<Labelled>> {
        self.eval.get(task).map_or_else(|| Ok(Vec::new()), |examples| self.batches(examples))
    }
}
