//! From lanes' examples to micro-batches on the device.

use std::ops::Range;

use pleach_base::{Result, code};
use pleach_data::{Batch, Ragged};
use pleach_nn::{Inputs, Layout};
use tch::{Device, Tensor};

use super::objective::Objective;
use super::pass::PassInput;

/// Padded cells per real token above which sequences are packed end to end instead.
const PADDING_WORTH_AVOIDING: f64 = 1.1;

/// What this rank is to compute in one step.
#[derive(Clone, Debug)]
pub struct StepBatch {
    /// The lanes of this rank, by number: consecutive, in order, before those of the next rank.
    pub lanes: Vec<(u32, Batch)>,
    /// Rows of every lane of the step, whoever has it: the same on all ranks.
    pub lane_rows: Vec<usize>,
}

/// Rows that go through the model together.
#[derive(Debug)]
pub(crate) struct MicroBatch {
    /// One pass for rows, two (queries, passages) for pairs.
    pub(crate) passes: Vec<PassInput>,
    /// Labels of tokens, shaped as they are, or of rows `[rows]`; absent for pairs.
    pub(crate) targets: Option<Tensor>,
    pub(crate) samples: Vec<u64>,
    /// What the loss counts in it.
    pub(crate) count: f64,
    /// Real tokens, padding not counted.
    pub(crate) tokens: u64,
}

impl MicroBatch {
    /// Puts a batch of one task on the device.
    ///
    /// # Errors
    /// `INTERNAL` when it is not of the objective's task.
    pub(crate) fn new(objective: Objective, batch: &Batch, device: Device) -> Result<Self> {
        if batch.task != objective.task() {
            return Err(code::INTERNAL.error(format!("a batch of {:?} for {objective:?}", batch.task)));
        }
        let samples = batch.sample_ids.clone();
        let (input, labels) = lay_out(&batch.inputs, &samples, device);
        let targets = match objective {
            Objective::CausalLm => Some(labels),
            Objective::Classification => batch.classes.as_ref().map(|c| Tensor::from_slice(c).to_device(device)),
            Objective::Contrastive { .. } => None,
        };
        let mut passes = vec![input];
        if let Some(passages) = &batch.passages {
            if passages.rows() != batch.inputs.rows() {
                return Err(code::INTERNAL.error("a row to train on has a passage and no query"));
            }
            passes.push(lay_out(passages, &samples, device).0);
        }
        let counts = batch.counts();
        Ok(Self { passes, targets, samples, count: counts.labels as f64, tokens: counts.tokens })
    }

    /// Cuts a batch into micro-batches of at most `most` rows. None for a batch without rows.
    ///
    /// # Errors
    /// As [`MicroBatch::new`].
    pub(crate) fn cut(objective: Objective, batch: &Batch, most: usize, device: Device) -> Result<Vec<Self>> {
        let ranges = (0..batch.len()).step_by(most.max(1)).map(|at| at..batch.len().min(at + most.max(1)));
        ranges.map(|rows: Range<usize>| Self::new(objective, &batch.slice(rows), device)).collect()
    }
}

/// Sequences of any lengths as a pass, and their labels as language: padded where that costs little, else packed.
pub(crate) fn lay_out(sequences: &Ragged, samples: &[u64], device: Device) -> (PassInput, Tensor) {
    let lengths: Vec<usize> = sequences.lengths().map(|length| length as usize).collect();
    let cells = lengths.iter().max().unwrap_or(&0) * lengths.len();
    if cells as f64 > PADDING_WORTH_AVOIDING * sequences.tokens() as f64 {
        packed(sequences, lengths, samples, device)
    } else {
        padded(sequences, lengths, samples, device)
    }
}

fn padded(sequences: &Ragged, lengths: Vec<usize>, samples: &[u64], device: Device) -> (PassInput, Tensor) {
    let padded = sequences.padded(0, 1);
    let shape = [padded.rows as i64, padded.width as i64];
    let tensor = |values: &[i64]| Tensor::from_slice(values).reshape(shape).to_device(device);
    let inputs = Inputs::ids(tensor(&padded.input_ids)).with("token_type_ids", tensor(&padded.type_ids));
    let labels = tensor(&padded.lm_labels());
    (PassInput { inputs, layout: Layout::padded(lengths, padded.width, samples.to_vec(), device) }, labels)
}

fn packed(sequences: &Ragged, lengths: Vec<usize>, samples: &[u64], device: Device) -> (PassInput, Tensor) {
    let packed = sequences.packed();
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    let inputs = Inputs::ids(tensor(&packed.input_ids)).with("token_type_ids", tensor(&packed.type_ids));
    let labels = tensor(&packed.lm_labels());
    (PassInput { inputs, layout: Layout::packed(lengths, samples.to_vec(), device) }, labels)
}
