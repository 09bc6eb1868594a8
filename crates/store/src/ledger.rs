//! The ledger: which step was made when, by which generation, from which samples. One row a step of a task.
//!
//! Rows travel with the snapshot whose step they lead up to. A writer puts them as Parquet chunks, split by epoch,
//! before the log entry that names each chunk with its sha256: only what a log entry names counts. A chunk is never
//! removed.

mod chunk;
mod parquet;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use pleach_base::{Fence, Result, Step, TaskName, code};

pub use chunk::LedgerChunk;
pub use parquet::{decode as decode_ledger, encode as encode_ledger};

/// One recorded step of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// The task.
    pub task: TaskName,
    /// Steps done, this one included: counts from 1.
    pub step: Step,
    /// Term and generation that made it.
    #[serde(flatten)]
    pub fence: Fence,
    /// The epoch, from 0, that its samples belong to.
    pub epoch: u64,
    /// Samples of all lanes.
    pub samples: u64,
    /// sha256 of the task's state after the step, hex.
    pub digest: String,
    /// sha256 over the 32 bytes of each lane digest, in lane order, hex.
    pub sample_digest: String,
    /// sha256 over the sample ids (u64, little-endian, in order) that each lane was fed, hex, by lane.
    pub lane_digests: Vec<String>,
    /// Something was not finite: the samples were fed, the update was left out.
    pub skipped: bool,
    /// Real tokens of all lanes, where they were counted.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Ranks that took part.
    pub world: u32,
    /// When it was recorded, by the clock of the rank that recorded it.
    pub unix_ms: i64,
}

/// The history of one task: for each step the row that counts. Fences never fall from one step to the next.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    rows: BTreeMap<Step, LedgerRow>,
    superseded: BTreeMap<(Step, Fence), LedgerRow>,
}

impl Ledger {
    /// Takes one more row, in any order. A row of a later fence says where its generation went on: rows of earlier ones
    /// for this step and the steps beyond it do not count. Two rows of one step and fence must be equal.
    ///
    /// # Errors
    /// `STORE_CORRUPT` for two rows of one step and fence that differ.
    pub fn take(&mut self, row: LedgerRow) -> Result<()> {
        let before = self.rows.range_mut(..=row.step).next_back().map(|(_, before)| before);
        match before {
            Some(before) if before.fence > row.fence => {
                self.superseded.insert((row.step, row.fence), row);
                return Ok(());
            }
            Some(before) if (before.step, before.fence) == (row.step, row.fence) => {
                if !same(before, &row) {
                    return Err(two_stories(before));
                }
                if before.lane_digests.is_empty() {
                    *before = row;
                }
                return Ok(());
            }
            _ => {}
        }
        let earlier = self.rows.range(row.step..).take_while(|(_, later)| later.fence < row.fence);
        for step in earlier.map(|(step, _)| *step).collect::<Vec<_>>() {
            self.set_aside(step);
        }
        self.rows.insert(row.step, row);
        Ok(())
    }

    fn set_aside(&mut self, step: Step) {
        if let Some(row) = self.rows.remove(&step) {
            self.superseded.insert((step, row.fence), row);
        }
    }

    /// A durable step says how far the history goes: what lay beyond it led nowhere.
    pub fn ends_at(&mut self, step: Step) {
        let beyond = self.rows.split_off(&Step(step.0 + 1));
        self.superseded.extend(beyond.into_values().map(|row| ((row.step, row.fence), row)));
    }

    /// The row of each step, in order.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &LedgerRow> {
        self.rows.values()
    }

    /// Rows that do not count, by step: a later generation made their step again, or went back behind it.
    pub fn superseded(&self) -> impl Iterator<Item = &LedgerRow> {
        self.superseded.values()
    }

    /// The newest step.
    #[must_use]
    pub fn last(&self) -> Option<&LedgerRow> {
        self.rows.values().next_back()
    }
}

/// Whether two rows tell the same of a step. Clocks may differ: a record may be told twice. And a coordinator that has to keep its
/// records small leaves the lanes out; the digest over all of them is there.
fn same(a: &LedgerRow, b: &LedgerRow) -> bool {
    let short = a.lane_digests.is_empty() || b.lane_digests.is_empty();
    let lane_digests = if short { a.lane_digests.clone() } else { b.lane_digests.clone() };
    *a == LedgerRow { unix_ms: a.unix_ms, tokens: a.tokens, lane_digests, ..b.clone() }
}

fn two_stories(row: &LedgerRow) -> pleach_base::Error {
    code::STORE_CORRUPT.error(format!(
        "ledger of task {}: step {} of fence {} is told twice, differently",
        row.task, row.step, row.fence
    ))
}

/// Rows that a snapshot of `step` may carry: steps in order, none beyond it.
pub(crate) fn check(rows: &[LedgerRow], step: Step) -> Result<()> {
    let ordered = rows.windows(2).all(|pair| pair[0].step < pair[1].step);
    if ordered && rows.last().is_none_or(|last| last.step <= step) {
        return Ok(());
    }
    Err(code::INTERNAL.error(format!("ledger of step {step}: its rows are not in order, or go beyond it")))
}

#[cfg(test)]
mod tests;
