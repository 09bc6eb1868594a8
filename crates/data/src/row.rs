//! A row, its place in the source, and what was wrong with a row that is not used.

use std::fmt;
use std::sync::Arc;

use pleach_base::{Code, Error, code};
use serde_json::{Map, Value};

/// Where a row comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as the source names it.
    pub file: Arc<str>,
    /// Line of a JSONL file or row of a Parquet file, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A usable row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Number among the usable rows of the dataset, from 0: the sample id.
    pub id: u64,
    /// File and line.
    pub place: Place,
    /// The fields. Of a Parquet row, those that the job uses.
    pub fields: Map<String, Value>,
}

/// A malformed row, which no rank uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// File and line.
    pub place: Place,
    /// What is wrong, naming the field.
    pub why: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

/// What is wrong with a row, before its place is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// `DATA_ROW` or `TOKEN_RANGE`.
    pub(crate) code: Code,
    /// One sentence that names the field.
    pub(crate) why: String,
}

impl Fault {
    pub(crate) fn row(why: impl Into<String>) -> Self {
        Self { code: code::DATA_ROW, why: why.into() }
    }

    pub(crate) fn token_range(id: u64, vocab_size: u32) -> Self {
        let why = format!("token id {id} is outside the model's vocabulary of {vocab_size}");
        Self { code: code::TOKEN_RANGE, why }
    }

    /// The error of a row that passed the checks on open and no longer does.
    pub(crate) fn late(self, place: &Place) -> Error {
        self.code
            .error(self.why)
            .at(place)
            .hint("the row was usable when the source was opened: the file changed under the job, or the tokenizer refuses it; start the job anew")
    }
}
