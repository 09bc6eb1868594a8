//! Examples side by side, as plain numbers with shapes. The trainer makes tensors of them.
//!
//! A batch keeps its sequences ragged; the padded and the packed form are two views of the same tokens.

use std::ops::Range;

use pleach_base::{Result, code};
use pleach_spec::job::DataTask;
use sha2::{Digest, Sha256};

use crate::example::{Content, Example};
use crate::marks::Marks;

/// Label of a position that has none.
pub const IGNORE: i64 = -100;

/// The first id of rows that stand beside a task's own.
pub const BESIDE: u64 = 1 << 63;

mod ragged;

pub use ragged::Ragged;

/// Sequences in a rectangle, padded on the right. All matrices are row-major `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padded {
    /// Sequences.
    pub rows: usize,
    /// Columns.
    pub width: usize,
    /// Token ids; the padding id where there is no token.
    pub input_ids: Vec<i64>,
    /// Segment of each token; 0 on padding.
    pub type_ids: Vec<i64>,
    /// 1 on tokens, 0 on padding.
    pub attention_mask: Vec<i64>,
    /// Position within the sequence; 0 on padding.
    pub positions: Vec<i64>,
    /// Tokens of each sequence, `[rows]`.
    pub lengths: Vec<i64>,
}

/// Sequences end to end, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Token ids, `[tokens]`.
    pub input_ids: Vec<i64>,
    /// Segment of each token, `[tokens]`.
    pub type_ids: Vec<i64>,
    /// Position within the sequence, `[tokens]`.
    pub positions: Vec<i64>,
    /// Where sequences start and end: `[rows + 1]`, from 0 to `tokens`.
    pub cu_seqlens: Vec<i64>,
    /// The longest sequence.
    pub max_length: i64,
}

/// What a batch holds, known before any forward pass: the denominators of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the dataset.
    pub samples: u64,
    /// Real tokens, queries and passages together.
    pub tokens: u64,
    /// Terms of the loss: predicted tokens (of a causal model n - 1 of a sequence of n), classes, or queries.
    pub labels: u64,
}

/// The examples of one lane, or a part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What is learnt.
    pub task: DataTask,
    /// Dataset row of each example, `[rows]`; of the dataset beside it from [`BESIDE`] on.
    pub sample_ids: Vec<u64>,
    /// The task that each example names, `[rows]`; empty when they name none.
    pub row_tasks: Vec<u32>,
    /// The texts; for retrieval the queries, empty for rows that are candidates only.
    pub inputs: Ragged,
    /// For retrieval the passages, as many as examples.
    pub passages: Option<Ragged>,
    /// For classification the classes, `[rows]`.
    pub classes: Option<Vec<i64>>,
}

impl Padded {
    /// Labels of language modelling, `[rows, width]`: the token itself, [`IGNORE`] on padding. Not shifted: the loss
    /// compares the prediction at position t with the label at t + 1.
    #[must_use]
    pub fn lm_labels(&self) -> Vec<i64> {
        let masked = self.input_ids.iter().zip(&self.attention_mask);
        masked.map(|(id, mask)| if *mask == 1 { *id } else { IGNORE }).collect()
    }
}

impl Packed {
    /// Labels of language modelling, `[tokens]`: the token itself, [`IGNORE`] on the first of each sequence. After the
    /// shift by one no sequence then predicts the start of the next.
    #[must_use]
    pub fn lm_labels(&self) -> Vec<i64> {
        let tokens = self.input_ids.iter().zip(&self.positions);
        tokens.map(|(id, position)| if *position == 0 { IGNORE } else { *id }).collect()
    }
}

impl Batch {
    /// Puts examples of one task side by side, in order.
    ///
    /// # Errors
    /// `INTERNAL` for examples of different tasks.
    pub fn collate(task: DataTask, examples: &[Example]) -> Result<Self> {
        let sample_ids = examples.iter().map(|example| example.sample_id).collect();
        let row_tasks = examples.iter().filter_map(|example| example.row_task).collect();
        let (mut inputs, mut passages, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            match (task, &example.content) {
                (DataTask::CausalLm, Content::Lm(text)) => inputs.push((text, None)),
                (DataTask::CausalLm | DataTask::MaskedLm, Content::Marked(text, marks)) => {
                    inputs.push((text, Some(marks)))
                }
                (DataTask::SequenceClassification, Content::Classification { input, label }) => {
                    inputs.push((input, None));
                    classes.push(i64::from(*label));
                }
                (DataTask::Retrieval, Content::Pair { query, passage }) => {
                    inputs.extend(query.iter().map(|query| (query, None::<&Marks>)));
                    passages.push(passage);
                }
                _ => {
                    return Err(
                        code::INTERNAL.error(format!("sample {}: not an example of {task:?}", example.sample_id))
                    );
                }
            }
        }
        Ok(Self {
            task,
            sample_ids,
            row_tasks,
            inputs: Ragged::marked(inputs),
            passages: (task == DataTask::Retrieval).then(|| Ragged::of(passages)),
            classes: (task == DataTask::SequenceClassification).then_some(classes),
        })
    }

    /// Examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sample_ids.len()
    }

    /// No example: the lane has no row in a short step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sample_ids.is_empty()
    }

    /// The denominators.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let labels = match self.task {
            DataTask::CausalLm => self.inputs.predicted(),
            DataTask::MaskedLm => self.inputs.labelled(),
            DataTask::SequenceClassification | DataTask::Retrieval => self.inputs.rows() as u64,
        };
        let tokens = self.inputs.tokens() + self.passages.as_ref().map_or(0, Ragged::tokens);
        Counts { samples: self.len() as u64, tokens: tokens as u64, labels }
    }

    /// Some of the examples: a micro-batch.
    ///
    /// # Panics
    /// When `rows` is not within the batch, or for candidates without queries.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> Self {
        Self {
            task: self.task,
            sample_ids: self.sample_ids[rows.clone()].to_vec(),
            row_tasks: self.row_tasks.get(rows.clone()).unwrap_or_default().to_vec(),
            inputs: self.inputs.slice(rows.clone()),
            passages: self.passages.as_ref().map(|passages| passages.slice(rows.clone())),
            classes: self.classes.as_ref().map(|classes| classes[rows].to_vec()),
        }
    }

    /// Rows of a source beside these, behind them: theirs are of task 1 of rows, these of task 0, and of theirs no token is
    /// predicted. Their ids are those of their own dataset from [`BESIDE`] on.
    #[must_use]
    pub fn beside(mut self, mut others: Self) -> Self {
        self.row_tasks = vec![0; self.len()];
        others.row_tasks = vec![1; others.len()];
        others.sample_ids.iter_mut().for_each(|id| *id += BESIDE);
        others.inputs.mute();
        self.append(others);
        self
    }

    /// Several batches of one task as one, in order: the lanes of a rank. `None` without any.
    pub fn concat(batches: impl IntoIterator<Item = Self>) -> Option<Self> {
        batches.into_iter().reduce(|mut all, next| {
            all.append(next);
            all
        })
    }

    /// The ids of the rows of the task's own dataset: what a step is recorded to have been fed.
    #[must_use]
    pub fn own_ids(&self) -> Vec<u64> {
        self.sample_ids.iter().copied().filter(|id| *id < BESIDE).collect()
    }

    fn append(&mut self, next: Self) {
        self.sample_ids.extend(next.sample_ids);
        self.row_tasks.extend(next.row_tasks);
        self.inputs.append(&next.inputs);
        if let (Some(passages), Some(more)) = (&mut self.passages, &next.passages) {
            passages.append(more);
        }
        if let (Some(classes), Some(more)) = (&mut self.classes, next.classes) {
            classes.extend(more);
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.labels += other.labels;
    }
}

/// SHA-256, in hex, of the samples that were fed: the epoch and each id, in order, as little-endian 64-bit numbers.
#[must_use]
pub fn sample_digest(epoch: u64, ids: &[u64]) -> String {
    let mut hash = Sha256::new();
    hash.update(epoch.to_le_bytes());
    for id in ids {
        hash.update(id.to_le_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests;
