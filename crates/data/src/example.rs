//! A row after tokenising.

use crate::marks::Marks;

/// One sequence of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included; never empty, at most `max_length`.
    pub ids: Vec<u32>,
    /// Segment of each token: 0, or 1 for the second text of a pair. As long as `ids`.
    pub type_ids: Vec<u32>,
}

impl Encoded {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// No token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// What a row teaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Predict each token from those before it.
    Lm(Encoded),
    /// Predict tokens of a row that says more of them than their ids, such as which: from those before them, or, where they
    /// are masked, from all others.
    Marked(Encoded, Marks),
    /// Assign the class to the sequence.
    Classification {
        /// A text, or a pair of texts in one sequence.
        input: Encoded,
        /// The class, from 0.
        label: u32,
    },
    /// Bring the query near its passage.
    Pair {
        /// Absent for rows that are candidates only.
        query: Option<Encoded>,
        /// The passage.
        passage: Encoded,
    },
}

/// An encoded row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The row's number in its dataset.
    pub sample_id: u64,
    /// The task that it names, when rows name theirs.
    pub row_task: Option<u32>,
    /// The tokens.
    pub content: Content,
}
