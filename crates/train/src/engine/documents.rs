//! Rows as documents: cut into chunks, with windows of what was read appended.
//!
//! A row of `n` tokens becomes `ceil(n / window)` chunks of equal length, the last perhaps shorter; where the row says
//! which of its tokens are one segment, chunks end there too. Chunk `j` knows of those before it. For reconstruction,
//! chunk `i` is followed by a window of the first `i + 1` chunks, of which it knows: it begins at a drawn token and is at
//! most `window` tokens long. Draws depend on the task, the step and the row alone.

use std::ops::Range;

use pleach_base::rng::Key;
use pleach_data::Ragged;
use pleach_methods::Segments;
use pleach_nn::Segment;

/// How rows are cut, and the key of this step's draws.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) segments: Segments,
    pub(crate) key: Key,
}

/// Segments as sequences, with the row that each is of.
pub(super) struct Documents {
    pub(super) sequences: Ragged,
    pub(super) segments: Vec<Segment>,
    pub(super) samples: Vec<u64>,
}

impl Cut {
    /// Cuts rows.
    pub(super) fn rows(&self, rows: &Ragged, samples: &[u64]) -> Documents {
        let mut documents = Documents { sequences: Ragged::default(), segments: Vec::new(), samples: Vec::new() };
        for (row, sample) in samples.iter().enumerate() {
            self.row(rows, row, *sample, &mut documents);
        }
        documents
    }

    fn row(&self, rows: &Ragged, row: usize, sample: u64, to: &mut Documents) {
        let Segments { window, completion, reconstruction } = self.segments;
        let chunks = chunks(rows.row(row).len(), rows.segments(row), &self.segments);
        let mut push = |index: usize, sees: usize, tokens: Range<usize>| {
            to.sequences.push_part(rows, row, tokens);
            to.segments.push(Segment { index, sees });
            to.samples.push(sample);
            if index < chunks.len() && (index == 0 || !completion) {
                to.sequences.mute_last();
            }
        };
        for (index, chunk) in chunks.iter().enumerate() {
            push(index, index, chunk.clone());
        }
        if reconstruction {
            let mut rng = self.key.with(sample).rng();
            for (index, chunk) in chunks.iter().enumerate() {
                let start = rng.below(chunk.end as u64) as usize;
                push(chunks.len() + index, index + 1, start..chunk.end.min(start + window));
            }
        }
    }
}

/// The chunks of a row, of which each run of equal numbers is a segment.
fn chunks(length: usize, numbers: &[i64], cut: &Segments) -> Vec<Range<usize>> {
    if numbers.is_empty() {
        return cut.chunks(length).collect();
    }
    let mut chunks = Vec::new();
    let mut from = 0;
    for run in numbers.chunk_by(|a, b| a == b) {
        chunks.extend(cut.chunks(run.len()).map(|chunk| from + chunk.start..from + chunk.end));
        from += run.len();
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_data::{Encoded, Marks};

    fn cut(completion: bool, reconstruction: bool, rows: &[(&[u32], &[i64])]) -> Documents {
        let texts: Vec<_> =
            rows.iter().map(|(ids, _)| Encoded { ids: ids.to_vec(), type_ids: vec![0; ids.len()] }).collect();
        let marks: Vec<_> =
            rows.iter().map(|(_, segments)| Marks { segments: segments.to_vec(), ..Marks::default() }).collect();
        let ragged = Ragged::marked(texts.iter().zip(marks.iter().map(Some)));
        let segments = Segments { window: 4, completion, reconstruction };
        let samples: Vec<u64> = (40..40 + rows.len() as u64).collect();
        Cut { segments, key: Key::seed(1) }.rows(&ragged, &samples)
    }

    fn rows(documents: &Documents) -> Vec<Vec<i64>> {
        (0..documents.sequences.rows()).map(|row| documents.sequences.row(row).to_vec()).collect()
    }

    #[test]
    fn chunks_are_equal_and_know_of_those_before_them() {
        let ids: Vec<u32> = (1..=9).collect();
        let found = cut(true, false, &[(&ids, &[]), (&[7, 8], &[])]);
        assert_eq!(rows(&found), [vec![1, 2, 3], vec![4, 5, 6], vec![7, 8, 9], vec![7, 8]]);
        let sees: Vec<_> = found.segments.iter().map(|segment| (segment.index, segment.sees)).collect();
        assert_eq!(sees, [(0, 0), (1, 1), (2, 2), (0, 0)]);
        assert_eq!(found.samples, [40, 40, 40, 41]);
        assert_eq!(found.sequences.predicted(), 4, "first chunks are read, not predicted");
    }

    #[test]
    fn a_row_may_say_where_segments_end() {
        let ids: Vec<u32> = (1..=8).collect();
        let found = cut(true, false, &[(&ids, &[0, 0, 0, 0, 0, 0, 3, 3])]);
        assert_eq!(rows(&found), [vec![1, 2, 3], vec![4, 5, 6], vec![7, 8]]);
    }

    #[test]
    fn windows_are_of_chunks_that_were_read() {
        let ids: Vec<u32> = (1..=12).collect();
        let found = cut(false, true, &[(&ids, &[])]);
        assert_eq!(found.segments.len(), 6);
        for (index, segment) in found.segments.iter().enumerate().skip(3) {
            let row = found.sequences.row(index);
            assert_eq!((segment.index, segment.sees), (index, index - 2));
            assert!(row.iter().all(|id| *id <= 4 * (index as i64 - 2)) && row.len() <= 4, "{row:?}");
            assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        let windows: u64 = (3..6).map(|row| found.sequences.row(row).len() as u64 - 1).sum();
        assert_eq!(found.sequences.predicted(), windows, "windows alone are predicted");
        let again = cut(false, true, &[(&ids, &[])]);
        assert_eq!(rows(&found), rows(&again));
    }
}
