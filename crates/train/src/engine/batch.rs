//! From lanes' examples to micro-batches on the device.

use std::ops::Range;

use pleach_base::{Result, code};
use pleach_data::{Batch, IGNORE, Ragged};
use pleach_methods::Virtual;
use pleach_nn::{Backbone, Form, Inputs, Layout, Reads};
use tch::{Device, Kind, Tensor};

use super::documents::{Cut, Documents};
use super::front;
use super::objective::Objective;
use super::pass::PassInput;

/// Padded cells per real token above which sequences are packed end to end instead.
const PADDING_WORTH_AVOIDING: f64 = 1.1;

/// What this rank is to compute in one step.
#[derive(Clone, Debug)]
pub struct StepBatch {
    /// The lanes of this rank, by number: consecutive, in order, before those of the next rank.
    pub lanes: Vec<(u32, Batch)>,
    /// Rows of every lane of the step, whoever has it: the same on all ranks. Rows of a source beside are not counted.
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

/// What rows are laid out for.
#[derive(Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) objective: Objective,
    pub(crate) reads: &'a Reads,
    /// What the adapter puts in front of every sequence.
    pub(crate) front: Virtual,
    pub(crate) device: Device,
    /// How rows are cut into segments of documents, if they are.
    pub(crate) cut: Option<Cut>,
    /// Sequences lie end to end, also where padding would cost little.
    pub(crate) packed: bool,
}

impl<'a> Ground<'a> {
    /// Rows for this model with an adapter that has these virtual tokens.
    pub(crate) fn new(model: &'a dyn Backbone, front: Virtual, objective: Objective) -> Self {
        Self { objective, reads: &model.config().info().reads, front, device: model.device(), cut: None, packed: false }
    }

    /// The same where rows are documents.
    pub(crate) fn cut(self, cut: Option<Cut>) -> Self {
        Self { cut, ..self }
    }
}

impl MicroBatch {
    /// Rows whose inputs and labels are on the device already, without the adapter's virtual tokens: labels of tokens as
    /// those lie in the stack that ends in the head, else one a row.
    pub(crate) fn of(ground: &Ground<'_>, input: PassInput, labels: &Tensor) -> Self {
        let Ground { objective, reads, front, .. } = *ground;
        let samples = input.layout.samples().to_vec();
        let (tokens, rows) = (input.layout.tokens() as u64, samples.len());
        // A decoder's labels lie in the second layout, where no prompt is.
        let targets = match reads.shift.is_none() && objective.labels_tokens() {
            true => front::labels(labels, &input.layout, front),
            false => labels.shallow_clone(),
        };
        let count = objective.count(&targets, rows);
        Self { passes: vec![front::with_virtual(input, front, reads)], targets: Some(targets), samples, count, tokens }
    }

    /// Puts a batch of one task on the device.
    ///
    /// # Errors
    /// `INTERNAL` when it is not of the objective's task.
    pub(crate) fn new(ground: &Ground<'_>, batch: &Batch) -> Result<Self> {
        let Ground { objective, reads, front, device, cut, packed } = *ground;
        if Some(batch.task) != objective.task() {
            return Err(code::INTERNAL.error(format!("a batch of {:?} for {objective:?}", batch.task)));
        }
        let samples = batch.sample_ids.clone();
        let documents = cut.filter(|_| objective == Objective::CausalLm).map(|cut| cut.rows(&batch.inputs, &samples));
        let (sequences, of) = match &documents {
            Some(Documents { sequences, samples, .. }) => (sequences, samples),
            None => (&batch.inputs, &samples),
        };
        // Segments of a document are rows of one task, which none of these methods tells apart.
        let tasks = if documents.is_some() { &[][..] } else { &batch.row_tasks };
        let (mut input, labels) = lay_out(sequences, of, tasks, device, packed);
        let labels = match objective {
            // Behind a prompt the first token of a sequence is predicted too, also where sequences are packed.
            Objective::CausalLm if front.prompt > 0 && matches!(input.layout.form(), Form::Packed { .. }) => {
                let ids = || input.inputs.get("input_ids").map(Tensor::shallow_clone);
                sequences.marks().map_or_else(ids, |marks| Some(Tensor::from_slice(&marks.labels).to_device(device)))
            }
            Objective::CausalLm => Some(labels),
            Objective::MaskedLm => Some(standing(sequences, &input.layout)),
            _ => batch.classes.as_ref().map(|classes| Tensor::from_slice(classes).to_device(device)),
        };
        if let Some(Documents { segments, .. }) = documents {
            input.layout = input.layout.segmented(segments);
        }
        if let Some(labels) = labels {
            return Ok(Self { samples, ..Self::of(ground, input, &labels) });
        }
        let mut passes = vec![front::with_virtual(input, front, reads)];
        if let Some(passages) = &batch.passages {
            if passages.rows() != batch.inputs.rows() {
                return Err(code::INTERNAL.error("a row to train on has a passage and no query"));
            }
            let passages = lay_out(passages, &samples, &batch.row_tasks, device, packed).0;
            passes.push(front::with_virtual(passages, front, reads));
        }
        let counts = batch.counts();
        Ok(Self { passes, targets: None, samples, count: counts.labels as f64, tokens: counts.tokens })
    }

    /// Cuts a batch into micro-batches of at most `most` rows. None for a batch without rows.
    ///
    /// # Errors
    /// As [`MicroBatch::new`].
    pub(crate) fn cut(ground: &Ground<'_>, batch: &Batch, most: usize) -> Result<Vec<Self>> {
        let ranges = (0..batch.len()).step_by(most.max(1)).map(|at| at..batch.len().min(at + most.max(1)));
        ranges.map(|rows: Range<usize>| Self::new(ground, &batch.slice(rows))).collect()
    }
}

/// Sequences of any lengths as a pass, and their labels as language: padded where that costs little, unless they must be
/// packed, else packed. `tasks` is empty when rows name none.
pub(crate) fn lay_out(
    sequences: &Ragged,
    samples: &[u64],
    tasks: &[u32],
    device: Device,
    must_pack: bool,
) -> (PassInput, Tensor) {
    let lengths: Vec<usize> = sequences.lengths().map(|length| length as usize).collect();
    let cells = lengths.iter().max().unwrap_or(&0) * lengths.len();
    let (input, labels) = if must_pack || cells as f64 > PADDING_WORTH_AVOIDING * sequences.tokens() as f64 {
        packed(sequences, lengths, samples, device)
    } else {
        padded(sequences, lengths, samples, device)
    };
    (PassInput { layout: input.layout.of_tasks(tasks.to_vec()), ..input }, labels)
}

fn padded(sequences: &Ragged, lengths: Vec<usize>, samples: &[u64], device: Device) -> (PassInput, Tensor) {
    let padded = sequences.padded(0, 1);
    let shape = [padded.rows as i64, padded.width as i64];
    let tensor = |values: &[i64]| Tensor::from_slice(values).reshape(shape).to_device(device);
    let inputs = Inputs::ids(tensor(&padded.input_ids)).with("token_type_ids", tensor(&padded.type_ids));
    let labels = tensor(&padded.lm_labels());
    let layout = Layout::padded(lengths, padded.width, samples.to_vec(), device);
    marked(sequences, inputs, layout, labels)
}

/// The pass and its labels with what the sequences say of their tokens.
fn marked(sequences: &Ragged, inputs: Inputs, layout: Layout, labels: Tensor) -> (PassInput, Tensor) {
    let Some(marks) = sequences.marks() else { return (PassInput::new(inputs, layout), labels) };
    let width = match layout.form() {
        Form::Padded { width } => Some(*width),
        Form::Packed { .. } => None,
    };
    let tensor = |values: &[i64], fill| {
        let cells = sequences.laid_out(values, width, fill);
        Tensor::from_slice(&cells).reshape(layout.shape()).to_device(layout.device())
    };
    // Where nothing stands before a token nothing predicts it: those places keep saying so.
    let labels = tensor(&marks.labels, IGNORE).masked_fill(&labels.eq(IGNORE), IGNORE);
    if marks.modality.iter().all(|number| *number == 0) {
        return (PassInput::new(inputs, layout), labels);
    }
    let modality = tensor(&marks.modality, 0);
    let rows = Tensor::from_slice(&marks.features).reshape([-1, marks.width as i64]).to_device(layout.device());
    let places = modality.reshape([-1]).ne(0).nonzero().squeeze_dim(1);
    let mut shape = layout.shape();
    let features = Tensor::zeros([shape.iter().product(), marks.width as i64], (Kind::Float, layout.device()));
    let features = features.index_copy(0, &places, &rows);
    shape.push(marks.width as i64);
    let inputs = inputs.with("features", features.reshape(&shape));
    (PassInput::new(inputs, layout.with_modality(Some(modality))), labels)
}

/// Labels where they stand, shaped as the tokens lie: nothing is moved, and the first token of a sequence is like any other.
fn standing(sequences: &Ragged, layout: &Layout) -> Tensor {
    let width = match layout.form() {
        Form::Padded { width } => Some(*width),
        Form::Packed { .. } => None,
    };
    let none = vec![IGNORE; sequences.tokens()];
    let labels = sequences.marks().map_or(&none, |marks| &marks.labels);
    Tensor::from_slice(&sequences.laid_out(labels, width, IGNORE)).reshape(layout.shape()).to_device(layout.device())
}

fn packed(sequences: &Ragged, lengths: Vec<usize>, samples: &[u64], device: Device) -> (PassInput, Tensor) {
    let packed = sequences.packed();
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    let inputs = Inputs::ids(tensor(&packed.input_ids)).with("token_type_ids", tensor(&packed.type_ids));
    let labels = tensor(&packed.lm_labels());
    marked(sequences, inputs, Layout::packed(lengths, samples.to_vec(), device), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_data::Encoded;

    /// The same rows padded and packed, behind a prompt: equal labels for every token, the first of each row included.
    #[test]
    fn packed_or_padded_a_row_behind_a_prompt_has_as_many_labels_as_tokens() {
        let ground = |prompt| Ground {
            objective: Objective::CausalLm,
            reads: &Reads::TEXT,
            front: Virtual { prompt, prefix: 0 },
            device: Device::Cpu,
            cut: None,
            packed: false,
        };
        let count = |prompt, lengths: &[u32]| {
            let rows: Vec<_> =
                lengths.iter().map(|n| Encoded { ids: (1..=*n).collect(), type_ids: vec![0; *n as usize] }).collect();
            let batch = Batch {
                task: pleach_spec::job::DataTask::CausalLm,
                sample_ids: (0..rows.len() as u64).collect(),
                row_tasks: Vec::new(),
                inputs: Ragged::of(&rows),
                passages: None,
                classes: None,
            };
            let micro = MicroBatch::new(&ground(prompt), &batch).unwrap();
            let packed = matches!(micro.passes[0].layout.form(), Form::Packed { .. });
            (packed, micro.count, micro.tokens)
        };
        for (prompt, lengths, expected) in [
            (0, &[4u32, 4][..], (false, 6.0, 8)),
            (0, &[9, 2], (true, 9.0, 11)),
            (3, &[4, 4], (false, 8.0, 8)),
            (3, &[9, 2], (true, 11.0, 11)),
        ] {
            assert_eq!(count(prompt, lengths), expected, "prompt {prompt}, rows of {lengths:?}");
        }
    }
}
