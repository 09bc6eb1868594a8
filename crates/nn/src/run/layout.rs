//! How sequences lie in memory: padded to one width, or packed one behind the other. Every block works on both.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

/// The two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[batch, width, ..]`, real tokens first in each row.
    Padded {
        /// Tokens a row, real or not.
        width: usize,
    },
    /// `[tokens, ..]`: sequence `i` is `offsets[i]..offsets[i + 1]`.
    Packed {
        /// Where sequences start, and at last where they end.
        offsets: Vec<usize>,
    },
}

/// A sequence as a part of a document, whose sequences stand one behind the other in the batch. Attention never leaves a
/// sequence; what goes from one to the next is a method's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequences of the same document before this one.
    pub index: usize,
    /// How many of the document's first sequences it may know of: at most `index`.
    pub sees: usize,
}

/// Sequences of a batch: form, lengths, sample ids. Tensors over tokens have the shape that the form says; the first
/// axis can be cut at borders of sequences in both.
#[derive(Debug)]
pub struct Layout {
    form: Form,
    lengths: Vec<usize>,
    samples: Vec<u64>,
    /// One a sequence, or none when no sequence knows of another.
    segments: Vec<Segment>,
    /// Number of each token's modality; none when all are text, whose number is 0.
    modality: Option<Tensor>,
    /// The task of each sequence; empty when rows name none.
    tasks: Vec<u32>,
    /// Position of each sequence's first token; empty when all begin at 0.
    shift: Vec<usize>,
    /// Number of the first sequence in the batch that this is a part of.
    start: usize,
    /// Numbers of all of them, where they are not consecutive.
    chosen: Vec<usize>,
    device: Device,
    positions: OnceCell<Tensor>,
    key_mask: OnceCell<Option<Tensor>>,
    buckets: OnceCell<Buckets>,
}

/// Sequences of the packed form by length, so that each length is one padded batch.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// Length and numbers of the sequences, shortest first.
    pub(crate) groups: Vec<(usize, Vec<usize>)>,
    /// Token numbers in bucket order, and the way back; `None` when that is the order already.
    pub(crate) order: Option<(Tensor, Tensor)>,
    /// The way back for one row a sequence.
    pub(crate) rows_back: Option<Tensor>,
}

impl Layout {
    /// Rows of `width` tokens, of which the first `lengths[i]` are real. `samples[i]` names the sample for draws.
    ///
    /// # Panics
    /// When the lists differ in length or a length is 0 or above `width`: a defect of the caller.
    #[must_use]
    pub fn padded(lengths: Vec<usize>, width: usize, samples: Vec<u64>, device: Device) -> Self {
        assert!(
            lengths.iter().all(|length| (1..=width).contains(length)),
            "lengths {lengths:?} do not fit width {width}"
        );
        Self::new(Form::Padded { width }, lengths, samples, device)
    }

    /// Sequences one behind the other.
    ///
    /// # Panics
    /// When the lists differ in length or a length is 0: a defect of the caller.
    #[must_use]
    pub fn packed(lengths: Vec<usize>, samples: Vec<u64>, device: Device) -> Self {
        assert!(lengths.iter().all(|length| *length > 0), "an empty sequence");
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        }));
        Self::new(Form::Packed { offsets }, lengths, samples, device)
    }

    fn new(form: Form, lengths: Vec<usize>, samples: Vec<u64>, device: Device) -> Self {
        assert_eq!(lengths.len(), samples.len(), "one sample id a sequence");
        let (positions, key_mask, buckets) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        let (segments, modality, shift, chosen) = (Vec::new(), None, Vec::new(), Vec::new());
        let (tasks, start) = (Vec::new(), 0);
        Self {
            form,
            lengths,
            samples,
            tasks,
            segments,
            modality,
            shift,
            start,
            chosen,
            device,
            positions,
            key_mask,
            buckets,
        }
    }

    /// The same sequences with the number of the task that each row names, or with none.
    ///
    /// # Panics
    /// When there is neither none nor one number a sequence: a defect of the caller.
    #[must_use]
    pub fn of_tasks(mut self, tasks: Vec<u32>) -> Self {
        assert!(tasks.is_empty() || tasks.len() == self.sequences(), "one task a sequence");
        self.tasks = tasks;
        self
    }

    /// The same sequences with positions that begin at `shift[i]`: behind that many virtual tokens in front of the keys.
    ///
    /// # Panics
    /// When there is not one number a sequence: a defect of the caller.
    #[must_use]
    pub fn shifted(mut self, shift: Vec<usize>) -> Self {
        assert_eq!(shift.len(), self.sequences(), "one shift a sequence");
        self.shift = if shift.iter().all(|by| *by == 0) { Vec::new() } else { shift };
        self.positions = OnceCell::new();
        self
    }

    /// The same sequences as segments of documents.
    ///
    /// # Panics
    /// When there is not one entry a sequence, a document's are not numbered from 0, or one would know of itself or of
    /// what comes behind it: a defect of the caller.
    #[must_use]
    pub fn segmented(mut self, segments: Vec<Segment>) -> Self {
        assert!(segments.is_empty() || segments.len() == self.sequences(), "one segment a sequence");
        let mut next = 0;
        for segment in &segments {
            assert!(segment.index == next || segment.index == 0, "segments of a document are in order");
            assert!(segment.sees <= segment.index, "segments know of earlier ones alone");
            next = segment.index + 1;
        }
        self.segments = segments;
        self
    }

    /// The same sequences with the number of each token's modality, int64, 0 for text and for what is no token.
    ///
    /// # Panics
    /// When the numbers have another shape than [`Layout::shape`]: a defect of the caller.
    #[must_use]
    pub fn with_modality(mut self, modality: Option<Tensor>) -> Self {
        if let Some(modality) = &modality {
            assert_eq!(modality.size(), self.shape(), "one modality a token");
        }
        self.modality = modality;
        self
    }

    /// The sequences as segments of documents; empty when they are none.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of each token's modality, shaped as [`Layout::shape`]; `None` when all are text.
    #[must_use]
    pub fn modality(&self) -> Option<&Tensor> {
        self.modality.as_ref()
    }

    /// The form.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// The number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// The number of real tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Real tokens of each sequence.
    #[must_use]
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Sample ids of the sequences.
    #[must_use]
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// The tasks that rows name, by number; empty when they name none.
    #[must_use]
    pub fn tasks(&self) -> &[u32] {
        &self.tasks
    }

    /// Where the tensors are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// The shape of a tensor over tokens without its last axes: `[batch, width]` or `[tokens]`.
    #[must_use]
    pub fn shape(&self) -> Vec<i64> {
        match &self.form {
            Form::Padded { width } => vec![self.sequences() as i64, *width as i64],
            Form::Packed { .. } => vec![self.tokens() as i64],
        }
    }

    /// Where sequence `i` lies in a tensor over tokens whose token axes are one.
    #[must_use]
    pub fn token_range(&self, sequence: usize) -> Range<usize> {
        let start = match &self.form {
            Form::Padded { width } => sequence * width,
            Form::Packed { offsets } => offsets[sequence],
        };
        start..start + self.lengths[sequence]
    }

    /// The rows of some consecutive sequences of a tensor over tokens, a view.
    pub fn narrow(&self, tensor: &Tensor, rows: Range<usize>) -> Tensor {
        let (start, end) = match &self.form {
            Form::Padded { .. } => (rows.start, rows.end),
            Form::Packed { offsets } => (offsets[rows.start], offsets[rows.end]),
        };
        // Keys and values may carry virtual tokens in front of every sequence.
        let extra = match &self.form {
            Form::Padded { .. } => 0,
            Form::Packed { .. } => self.virtual_tokens(tensor),
        };
        let (start, end) = (start + rows.start * extra, end + rows.end * extra);
        tensor.narrow(0, start as i64, (end - start) as i64)
    }

    /// A tensor over tokens cut into consecutive rows that are all of them: views, whose gradients come back in one piece.
    pub(crate) fn split<'r>(&self, tensor: &Tensor, ranges: impl Iterator<Item = &'r Range<usize>>) -> Vec<Tensor> {
        let sizes: Vec<i64> = ranges
            .map(|rows| match &self.form {
                Form::Padded { .. } => rows.len(),
                Form::Packed { offsets } => {
                    offsets[rows.end] - offsets[rows.start] + rows.len() * self.virtual_tokens(tensor)
                }
            })
            .map(|size| size as i64)
            .collect();
        match sizes.as_slice() {
            [_] => vec![tensor.alias()],
            sizes => tensor.split_with_sizes(sizes, 0),
        }
    }

    /// Packed batches one behind the other as one: without segments, modalities and tasks of rows.
    ///
    /// # Panics
    /// When one is padded: a defect of the caller.
    #[must_use]
    pub fn behind_each_other(parts: &[&Self], device: Device) -> Self {
        let packed = |part: &&Self| matches!(part.form, Form::Packed { .. });
        assert!(parts.iter().all(packed), "padded batches are of different widths");
        let all = |of: fn(&Self) -> &Vec<usize>| parts.iter().flat_map(|part| of(part).clone()).collect();
        let samples = parts.iter().flat_map(|part| part.samples.clone()).collect();
        let shift = |part: &&Self| match part.shift.is_empty() {
            true => vec![0; part.sequences()],
            false => part.shift.clone(),
        };
        Self::packed(all(|part| &part.lengths), samples, device).shifted(parts.iter().flat_map(shift).collect())
    }

    /// How many more tokens than this layout's a tensor has in front of every sequence.
    #[must_use]
    pub(crate) fn virtual_tokens(&self, tensor: &Tensor) -> usize {
        let size = tensor.size();
        match &self.form {
            Form::Padded { width } => (size[1] as usize).saturating_sub(*width),
            Form::Packed { .. } if self.lengths.is_empty() => 0,
            Form::Packed { .. } => (size[0] as usize).saturating_sub(self.tokens()) / self.sequences(),
        }
    }

    /// The layout of some consecutive sequences, which are whole documents where there are such.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (lengths, samples) = (self.lengths[rows.clone()].to_vec(), self.samples[rows.clone()].to_vec());
        let mut part = match &self.form {
            Form::Padded { width } => Self::new(Form::Padded { width: *width }, lengths, samples, self.device),
            Form::Packed { .. } => Self::packed(lengths, samples, self.device),
        };
        part.tasks = self.tasks.get(rows.clone()).unwrap_or_default().to_vec();
        part.shift = self.shift.get(rows.clone()).unwrap_or_default().to_vec();
        part.start = self.start + rows.start;
        let part = part.segmented(self.segments.get(rows.clone()).unwrap_or_default().to_vec());
        part.with_modality(self.modality.as_ref().map(|modality| self.narrow(modality, rows)))
    }

    /// Some sequences of one length as a padded batch.
    pub(crate) fn bucket(&self, length: usize, members: &[usize]) -> Self {
        let samples = members.iter().map(|sequence| self.samples[*sequence]).collect();
        let tasks = members.iter().filter_map(|sequence| self.tasks.get(*sequence).copied()).collect();
        let mut bucket = Self::padded(vec![length; members.len()], length, samples, self.device).of_tasks(tasks);
        bucket.chosen = members.iter().map(|sequence| self.start + sequence).collect();
        bucket
    }

    /// Numbers of the sequences in the batch that this layout is a part of. They are consecutive, but at sites that work
    /// length by length ([`crate::Role::AttnScores`] in the packed form).
    #[must_use]
    pub fn numbers(&self) -> Vec<usize> {
        if self.chosen.is_empty() { self.range().collect() } else { self.chosen.clone() }
    }

    /// The packed layout of keys with `extra` virtual tokens in front of every sequence; `None` when there are none.
    pub(crate) fn lengthened(&self, extra: usize) -> Option<Self> {
        let longer = || self.lengths.iter().map(|length| length + extra).collect();
        let packed = || Self::packed(longer(), self.samples.clone(), self.device).of_tasks(self.tasks.clone());
        (extra > 0).then(packed)
    }

    /// The layout of one row a sequence, `[batch, ..]`, for what comes after pooling.
    #[must_use]
    pub fn one_each(&self) -> Self {
        let rows = Self::packed(vec![1; self.sequences()], self.samples.clone(), self.device);
        let mut rows = rows.of_tasks(self.tasks.clone());
        rows.start = self.start;
        rows
    }

    /// The sequences' numbers in the batch that this is a part of.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.sequences()
    }

    /// Position of every token in its sequence: `[width]`, `[batch, width]` where sequences begin at different
    /// positions, or `[tokens]`; int64.
    pub fn positions(&self) -> &Tensor {
        self.positions.get_or_init(|| match &self.form {
            Form::Padded { width } => {
                let plain = Tensor::arange(*width as i64, (Kind::Int64, self.device));
                match self.shift.as_slice() {
                    [] => plain,
                    [first, rest @ ..] if rest.iter().all(|by| by == first) => plain + *first as i64,
                    shift => {
                        let shift: Vec<i64> = shift.iter().map(|by| *by as i64).collect();
                        plain.unsqueeze(0) + Tensor::from_slice(&shift).to_device(self.device).unsqueeze(1)
                    }
                }
            }
            Form::Packed { .. } => {
                let first = |sequence: usize| self.shift.get(sequence).copied().unwrap_or(0) as i64;
                let all: Vec<i64> = self
                    .lengths
                    .iter()
                    .enumerate()
                    .flat_map(|(sequence, length)| first(sequence)..first(sequence) + *length as i64)
                    .collect();
                Tensor::from_slice(&all).to_device(self.device)
            }
        })
    }

    /// One more than the farthest position, padding included.
    pub(crate) fn farthest(&self) -> usize {
        let end = |sequence: usize| match &self.form {
            Form::Padded { width } => *width,
            Form::Packed { .. } => self.lengths[sequence],
        };
        let shift = |sequence: usize| self.shift.get(sequence).copied().unwrap_or(0);
        (0..self.sequences()).map(|sequence| end(sequence) + shift(sequence)).max().unwrap_or(0)
    }

    /// Which tokens are real: `[batch, width]` bool; `None` when all are.
    pub fn real(&self) -> Option<&Tensor> {
        let Form::Padded { width } = &self.form else { return None };
        let mask = self.key_mask.get_or_init(|| {
            if self.lengths.iter().all(|length| length == width) {
                return None;
            }
            let lengths: Vec<i64> = self.lengths.iter().map(|length| *length as i64).collect();
            let lengths = Tensor::from_slice(&lengths).to_device(self.device).unsqueeze(1); // [b, 1]
            let index = Tensor::arange(*width as i64, (Kind::Int64, self.device));
            Some(index.unsqueeze(0).lt_tensor(&lengths)) // [b, w]
        });
        mask.as_ref()
    }

    /// One token of each sequence: `[.., d]` to `[batch, d]`.
    pub fn pick(&self, hidden: &Tensor, token: impl Fn(usize) -> usize) -> Tensor {
        let at = |i: usize| (self.token_range(i).start + token(self.lengths[i])) as i64;
        let index: Vec<i64> = (0..self.sequences()).map(at).collect();
        let index = Tensor::from_slice(&index).to_device(self.device);
        self.flat(hidden).index_select(0, &index)
    }

    /// The mean over real tokens: `[.., d]` to `[batch, d]`, in float32.
    pub fn mean(&self, hidden: &Tensor) -> Tensor {
        let hidden = hidden.to_kind(Kind::Float);
        match (&self.form, self.real()) {
            (Form::Padded { .. }, None) => hidden.mean_dim([1i64].as_slice(), false, Kind::Float),
            (Form::Padded { .. }, Some(real)) => {
                let real = real.to_kind(Kind::Float).unsqueeze(-1); // [b, w, 1]
                let sum = (hidden * &real).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
                sum / real.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            }
            (Form::Packed { .. }, _) => {
                let means: Vec<_> = self
                    .split_buckets(&hidden)
                    .iter()
                    .map(|bucket| bucket.mean_dim([1i64].as_slice(), false, Kind::Float))
                    .collect();
                let all = Tensor::cat(&means, 0);
                match &self.buckets().rows_back {
                    Some(back) => all.index_select(0, back),
                    None => all,
                }
            }
        }
    }

    fn flat(&self, hidden: &Tensor) -> Tensor {
        match &self.form {
            Form::Padded { .. } => hidden.flatten(0, 1),
            Form::Packed { .. } => hidden.shallow_clone(),
        }
    }

    /// The packed form by length: each bucket `[sequences, length, ..]`.
    pub(crate) fn split_buckets(&self, tensor: &Tensor) -> Vec<Tensor> {
        let buckets = self.buckets();
        let sorted = match &buckets.order {
            Some((order, _)) => tensor.index_select(0, order),
            None => tensor.shallow_clone(),
        };
        let sizes: Vec<i64> = buckets.groups.iter().map(|(length, members)| (length * members.len()) as i64).collect();
        let parts = sorted.split_with_sizes(&sizes, 0);
        let shape = |length: usize, members: usize| {
            let mut shape = vec![members as i64, length as i64];
            shape.extend(&tensor.size()[1..]);
            shape
        };
        parts
            .iter()
            .zip(&buckets.groups)
            .map(|(part, (length, members))| part.reshape(shape(*length, members.len())))
            .collect()
    }

    /// The inverse of [`Layout::split_buckets`].
    pub(crate) fn join_buckets(&self, parts: &[Tensor]) -> Tensor {
        let flat: Vec<_> = parts.iter().map(|part| part.flatten(0, 1)).collect();
        let all = Tensor::cat(&flat, 0);
        match &self.buckets().order {
            Some((_, back)) => all.index_select(0, back),
            None => all,
        }
    }

    pub(crate) fn buckets(&self) -> &Buckets {
        self.buckets.get_or_init(|| {
            let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (sequence, length) in self.lengths.iter().enumerate() {
                by_length.entry(*length).or_default().push(sequence);
            }
            let sequences: Vec<usize> = by_length.values().flatten().copied().collect();
            let groups = by_length.into_iter().collect();
            if sequences.is_sorted() {
                return Buckets { groups, order: None, rows_back: None };
            }
            let tokens: Vec<i64> = sequences.iter().flat_map(|s| self.token_range(*s)).map(|t| t as i64).collect();
            let rows: Vec<i64> = sequences.iter().map(|s| *s as i64).collect();
            let upload = |list: &[i64]| Tensor::from_slice(list).to_device(self.device);
            let order = Some((upload(&tokens), upload(&inverse(&tokens))));
            Buckets { groups, order, rows_back: Some(upload(&inverse(&rows))) }
        })
    }
}

fn inverse(order: &[i64]) -> Vec<i64> {
    let mut back = vec![0; order.len()];
    for (at, from) in order.iter().enumerate() {
        back[*from as usize] = at as i64;
    }
    back
}
