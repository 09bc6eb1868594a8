//! Sequences of different lengths, one after the other, and what is said of their tokens.

use std::ops::Range;

use super::{IGNORE, Packed, Padded};
use crate::example::Encoded;
use crate::marks::Marks;

/// Sequences of different lengths, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ragged {
    ids: Vec<i64>,
    type_ids: Vec<i64>,
    /// Cumulative lengths: `rows + 1` numbers from 0.
    bounds: Vec<i64>,
    /// Of all tokens when any sequence is marked: every list but the features is as long as `ids`.
    marks: Option<Marks>,
}

impl Ragged {
    /// The sequences in order.
    pub fn of<'a>(sequences: impl IntoIterator<Item = &'a Encoded>) -> Self {
        Self::marked(sequences.into_iter().map(|sequence| (sequence, None)))
    }

    /// The same with what is said of their tokens.
    pub fn marked<'a>(sequences: impl IntoIterator<Item = (&'a Encoded, Option<&'a Marks>)>) -> Self {
        let mut ragged = Self { bounds: vec![0], ..Self::default() };
        for (sequence, marks) in sequences {
            let ids = sequence.ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>();
            let type_ids = sequence.type_ids.iter().map(|kind| i64::from(*kind)).collect::<Vec<_>>();
            ragged.push(&ids, &type_ids, marks.map(|marks| marks.filled(&ids)));
        }
        ragged
    }

    /// Adds a sequence; `marks` has full lists.
    fn push(&mut self, ids: &[i64], type_ids: &[i64], marks: Option<Marks>) {
        if marks.is_some() || self.marks.is_some() {
            let marks = marks.unwrap_or_else(|| Marks::default().filled(ids));
            self.full_marks().append(&marks);
        }
        self.ids.extend(ids);
        self.type_ids.extend(type_ids);
        self.bounds.push(self.ids.len() as i64);
    }

    /// The marks, of all tokens so far.
    fn full_marks(&mut self) -> &mut Marks {
        let ids = &self.ids;
        self.marks.get_or_insert_with(|| Marks::default().filled(ids))
    }

    /// Adds a part of a sequence of another batch, as a sequence.
    ///
    /// # Panics
    /// When `tokens` is not within that sequence.
    pub fn push_part(&mut self, from: &Self, row: usize, tokens: Range<usize>) {
        if self.bounds.is_empty() {
            self.bounds.push(0);
        }
        let start = from.bounds[row] as usize;
        let span = start + tokens.start..start + tokens.end;
        assert!(span.end <= from.bounds[row + 1] as usize, "a part of a sequence lies within it");
        let marks = from.marks.as_ref().map(|marks| marks.cut(span.clone()));
        self.push(&from.ids[span.clone()], &from.type_ids[span], marks);
    }

    /// Says that nothing of the last sequence is predicted.
    pub fn mute_last(&mut self) {
        let length = self.lengths().last().unwrap_or(0) as usize;
        let labels = &mut self.full_marks().labels;
        let from = labels.len() - length;
        labels[from..].fill(IGNORE);
    }

    /// Says that nothing of any sequence is predicted.
    pub fn mute(&mut self) {
        self.full_marks().labels.fill(IGNORE);
    }

    /// Sequences.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// Tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of each sequence.
    pub fn lengths(&self) -> impl DoubleEndedIterator<Item = i64> + ExactSizeIterator {
        self.bounds.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// What is said of the tokens, a full list of each but the features; `None` when nothing is.
    #[must_use]
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.as_ref()
    }

    /// The numbers of the segments of a sequence's tokens; empty when they are one.
    #[must_use]
    pub fn segments(&self, row: usize) -> &[i64] {
        let span = self.span(row);
        self.marks.as_ref().and_then(|marks| marks.segments.get(span)).unwrap_or_default()
    }

    /// Tokens that are predicted: all but the first of each sequence, unless they are marked.
    #[must_use]
    pub fn predicted(&self) -> u64 {
        let Some(marks) = &self.marks else {
            return self.lengths().map(|length| (length - 1).max(0) as u64).sum();
        };
        let of = |row| marks.labels[self.span(row)].iter().skip(1).filter(|label| **label != IGNORE).count() as u64;
        (0..self.rows()).map(of).sum()
    }

    /// Tokens with a label of their own, wherever they stand.
    #[must_use]
    pub fn labelled(&self) -> u64 {
        let labels = self.marks.iter().flat_map(|marks| &marks.labels);
        labels.filter(|label| **label != IGNORE).count() as u64
    }

    fn span(&self, row: usize) -> Range<usize> {
        let span = self.bounds.get(row).zip(self.bounds.get(row + 1));
        span.map_or(0..0, |(from, to)| *from as usize..*to as usize)
    }

    /// The token ids of a sequence; none outside.
    #[must_use]
    pub fn row(&self, row: usize) -> &[i64] {
        self.ids.get(self.span(row)).unwrap_or_default()
    }

    /// Some of the sequences.
    ///
    /// # Panics
    /// When `rows` is not within the sequences.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let bounds = &self.bounds[rows.start..=rows.end];
        let (from, to) = (bounds[0], bounds[bounds.len() - 1]);
        let span = from as usize..to as usize;
        Self {
            ids: self.ids[span.clone()].to_vec(),
            type_ids: self.type_ids[span.clone()].to_vec(),
            bounds: bounds.iter().map(|bound| bound - from).collect(),
            marks: self.marks.as_ref().map(|marks| marks.cut(span)),
        }
    }

    pub(super) fn append(&mut self, other: &Self) {
        let from = self.ids.len() as i64;
        if self.marks.is_some() || other.marks.is_some() {
            let more = other.marks.clone().unwrap_or_else(|| Marks::default().filled(&other.ids));
            self.full_marks().append(&more);
        }
        self.ids.extend(&other.ids);
        self.type_ids.extend(&other.type_ids);
        self.bounds.extend(other.bounds.iter().skip(1).map(|bound| bound + from));
    }

    /// Numbers of all tokens, of which `values` has one each in order, as the rectangle of [`Ragged::padded`]
    /// (`width` columns, `fill` where there is no token) or, without a width, as they are.
    #[must_use]
    pub fn laid_out(&self, values: &[i64], width: Option<usize>, fill: i64) -> Vec<i64> {
        let Some(width) = width else { return values.to_vec() };
        let mut cells = vec![fill; self.rows() * width];
        for row in 0..self.rows() {
            let span = self.span(row);
            cells[row * width..row * width + span.len()].copy_from_slice(&values[span]);
        }
        cells
    }

    /// The rectangle as wide as the longest sequence, rounded up to a multiple of `multiple_of`.
    #[must_use]
    pub fn padded(&self, pad_id: u32, multiple_of: usize) -> Padded {
        let longest = self.lengths().max().unwrap_or(0) as usize;
        let (rows, width) = (self.rows(), longest.next_multiple_of(multiple_of.max(1)));
        let mut padded = Padded {
            rows,
            width,
            input_ids: vec![i64::from(pad_id); rows * width],
            type_ids: vec![0; rows * width],
            attention_mask: vec![0; rows * width],
            positions: vec![0; rows * width],
            lengths: self.lengths().collect(),
        };
        for (row, pair) in self.bounds.windows(2).enumerate() {
            let (from, to) = (pair[0] as usize, pair[1] as usize);
            let cells = row * width..row * width + (to - from);
            padded.input_ids[cells.clone()].copy_from_slice(&self.ids[from..to]);
            padded.type_ids[cells.clone()].copy_from_slice(&self.type_ids[from..to]);
            padded.attention_mask[cells.clone()].fill(1);
            for (position, cell) in cells.enumerate() {
                padded.positions[cell] = position as i64;
            }
        }
        padded
    }

    /// The sequences end to end.
    #[must_use]
    pub fn packed(&self) -> Packed {
        Packed {
            input_ids: self.ids.clone(),
            type_ids: self.type_ids.clone(),
            positions: self.lengths().flat_map(|length| 0..length).collect(),
            cu_seqlens: self.bounds.clone(),
            max_length: self.lengths().max().unwrap_or(0),
        }
    }
}

impl Marks {
    /// The same with full lists, for a sequence of these ids.
    fn filled(&self, ids: &[i64]) -> Self {
        let or = |list: &Vec<i64>| if list.is_empty() { vec![0; ids.len()] } else { list.clone() };
        let labels = if self.labels.is_empty() { ids.to_vec() } else { self.labels.clone() };
        Self { labels, segments: or(&self.segments), modality: or(&self.modality), ..self.clone() }
    }

    fn append(&mut self, more: &Self) {
        self.labels.extend(&more.labels);
        self.segments.extend(&more.segments);
        self.modality.extend(&more.modality);
        self.features.extend(&more.features);
        self.width = self.width.max(more.width);
    }

    /// Those of some of the tokens, of full lists.
    fn cut(&self, tokens: Range<usize>) -> Self {
        let (before, own) = (self.others(0..tokens.start), self.others(tokens.clone()));
        Self {
            labels: self.labels[tokens.clone()].to_vec(),
            segments: self.segments[tokens.clone()].to_vec(),
            modality: self.modality[tokens].to_vec(),
            features: self.features[before * self.width..(before + own) * self.width].to_vec(),
            width: self.width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(ids: &[u32]) -> Encoded {
        Encoded { ids: ids.to_vec(), type_ids: vec![0; ids.len()] }
    }

    fn picture() -> Marks {
        Marks { modality: vec![0, 1, 1], features: vec![0.5, 1.5], width: 1, ..Marks::default() }
    }

    #[test]
    fn marks_go_where_their_tokens_go() {
        let (a, b, c) = (encoded(&[5, 6]), encoded(&[7, 8, 9]), encoded(&[1]));
        let marks = picture();
        let mut all = Ragged::marked([(&a, None), (&b, Some(&marks))]);
        all.append(&Ragged::of([&c]));
        let found = all.marks().unwrap();
        assert_eq!((&found.labels[..], &found.modality[..]), (&[5, 6, 7, 8, 9, 1][..], &[0, 0, 0, 1, 1, 0][..]));
        let end = all.slice(1..3);
        assert_eq!(end.marks().unwrap().features, [0.5, 1.5]);
        let mut part = Ragged::default();
        part.push_part(&all, 1, 2..3);
        part.push_part(&all, 0, 0..2);
        assert_eq!(
            (part.row(0), part.row(1), &part.marks().unwrap().features[..]),
            (&[9][..], &[5, 6][..], &[1.5][..])
        );
        assert_eq!(part.predicted(), 1);
        part.mute_last();
        assert_eq!(part.predicted(), 0);
        assert_eq!(part.laid_out(&part.marks().unwrap().labels, Some(2), -7), [9, -7, IGNORE, IGNORE]);
    }

    #[test]
    fn without_marks_nothing_is_kept_of_them() {
        let mut all = Ragged::of([&encoded(&[5, 6])]);
        all.append(&Ragged::of([&encoded(&[7])]));
        assert!(all.marks().is_none() && all.segments(0).is_empty());
        assert_eq!(all.predicted(), 1);
        let mut muted = Ragged::default();
        muted.push_part(&all, 0, 0..2);
        muted.mute_last();
        muted.push_part(&all, 1, 0..1);
        assert_eq!(muted.marks().unwrap().labels, [IGNORE, IGNORE, 7]);
    }
}
