//! One epoch: which lane should have been fed which rows, what was recorded, and whether the rows make up the epoch.
//! Memory: a bit a row.

use pleach_base::{Fence, Result};
use pleach_data::{EpochSteps, Order};
use pleach_store::{Ledger, LedgerRow};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What is remembered of an epoch in which much is wrong.
const FINDINGS: usize = 100;
const NAMED_ROWS: usize = 5;

/// How the rows of an epoch are cut into steps and lanes.
pub(super) trait Cut {
    fn lanes(&self) -> u32;
    /// The steps of an epoch, from 0.
    fn steps(&self, epoch: u64) -> EpochSteps;
    /// The rows that an epoch is made of.
    fn members(&self, epoch: u64) -> Box<dyn Iterator<Item = u64> + '_>;
    /// The rows of a lane in a step (from 1).
    fn lane(&self, step: u64, lane: u32) -> Vec<u64>;
}

impl Cut for Order {
    fn lanes(&self) -> u32 {
        self.plan().lanes()
    }

    fn steps(&self, epoch: u64) -> EpochSteps {
        self.plan().epoch_steps(epoch)
    }

    fn members(&self, epoch: u64) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(Self::members(self, epoch))
    }

    fn lane(&self, step: u64, lane: u32) -> Vec<u64> {
        self.lane_rows(step - 1, lane).rows
    }
}

/// A row that was proven to be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fed {
    pub(crate) epoch: u64,
    pub(crate) sample: u64,
    pub(crate) step: u64,
    pub(crate) lane: u32,
    pub(crate) fence: Fence,
    pub(crate) skipped: bool,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The step, or the first of several.
    pub(crate) step: Option<u64>,
    /// The last of several steps.
    pub(crate) to: Option<u64>,
    pub(crate) lane: Option<u32>,
    pub(crate) what: String,
}

impl Finding {
    pub(super) fn at(step: u64, what: impl Into<String>) -> Self {
        Self { step: Some(step), to: None, lane: None, what: what.into() }
    }
}

/// Consecutive steps that one generation made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Made {
    #[serde(flatten)]
    pub(crate) fence: Fence,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// A record that does not count: its step was made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Superseded {
    pub(crate) step: u64,
    #[serde(flatten)]
    pub(crate) fence: Fence,
}

/// What came out for an epoch.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Epoch {
    /// From 0.
    pub(crate) epoch: u64,
    /// All its steps were made.
    pub(crate) finished: bool,
    /// Each row that should have been trained was, once.
    pub(crate) holds: bool,
    /// Steps with a record, and steps that the whole epoch has.
    pub(crate) steps: u64,
    pub(crate) of_steps: u64,
    /// Rows that are proven to be trained.
    pub(crate) rows: u64,
    pub(crate) made_by: Vec<Made>,
    /// Steps whose samples were fed and whose update was left out.
    pub(crate) not_finite: Vec<u64>,
    pub(crate) superseded: Vec<Superseded>,
    pub(crate) findings: Vec<Finding>,
    /// Beyond those listed.
    pub(crate) more_findings: u64,
    /// Rows of a finished epoch that no step is proven to contain.
    pub(crate) unproven: u64,
    #[serde(skip)]
    pub(super) unproven_rows: Vec<u64>,
}

impl Epoch {
    pub(super) fn find(&mut self, finding: Finding) {
        self.holds = false;
        if self.findings.len() < FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    fn made(&mut self, row: &LedgerRow) {
        self.steps += 1;
        match self.made_by.last_mut() {
            Some(made) if made.fence == row.fence && made.to + 1 == row.step.0 => made.to = row.step.0,
            _ => self.made_by.push(Made { fence: row.fence, from: row.step.0, to: row.step.0 }),
        }
        if row.skipped {
            self.not_finite.push(row.step.0);
        }
    }

    fn missing(&mut self, from: u64, to: u64) {
        if from <= to {
            let what = "no record says what was fed".to_owned();
            self.find(Finding { step: Some(from), to: (to > from).then_some(to), lane: None, what });
        }
    }
}

/// Checks an epoch up to step `last`. `fence` is that of the step before, and becomes that of the last one here.
pub(super) fn epoch(
    cut: &dyn Cut,
    epoch: u64,
    last: u64,
    ledger: &Ledger,
    fence: &mut Option<Fence>,
    each: &mut dyn FnMut(Fed) -> Result<()>,
) -> Result<Epoch> {
    let EpochSteps { first, end, whole } = cut.steps(epoch);
    let first = first + 1;
    let mut found = Epoch {
        epoch,
        finished: end + 1 - first == whole && last >= end,
        holds: true,
        steps: 0,
        of_steps: whole,
        rows: 0,
        made_by: Vec::new(),
        not_finite: Vec::new(),
        superseded: ledger.superseded().map(|row| Superseded { step: row.step.0, fence: row.fence }).collect(),
        findings: Vec::new(),
        more_findings: 0,
        unproven: 0,
        unproven_rows: Vec::new(),
    };
    let mut due = Due::of(cut.members(epoch));
    let mut next = first;
    for row in ledger.rows() {
        if !(first..=end).contains(&row.step.0) {
            found
                .find(Finding::at(row.step.0, format!("its record says that it is of epoch {epoch}, which it is not")));
            continue;
        }
        found.missing(next, row.step.0 - 1);
        next = row.step.0 + 1;
        found.made(row);
        if let Some(before) = fence.replace(row.fence).filter(|before| *before > row.fence) {
            found.find(Finding::at(
                row.step.0,
                format!("it is of fence {}, and the step before of the later {before}", row.fence),
            ));
        }
        step(cut, row, &mut due, &mut found, each)?;
    }
    found.missing(next, last.min(end));
    if found.finished {
        found.unproven = due.left().count() as u64;
        found.unproven_rows = due.left().take(NAMED_ROWS).collect();
    }
    Ok(found)
}

/// Holds the record of one step against what its lanes should have been fed.
fn step(
    cut: &dyn Cut,
    row: &LedgerRow,
    due: &mut Due,
    found: &mut Epoch,
    each: &mut dyn FnMut(Fed) -> Result<()>,
) -> Result<()> {
    let number = row.step.0;
    if row.lane_digests.len() as u64 != u64::from(cut.lanes()) {
        let what = format!("its record is of {} lanes, the job has {}", row.lane_digests.len(), cut.lanes());
        found.find(Finding::at(number, what));
        return Ok(());
    }
    let lanes: Vec<Vec<u64>> = (0..cut.lanes()).map(|lane| cut.lane(number, lane)).collect();
    let expected: Vec<[u8; 32]> = lanes.iter().map(|rows| digest(rows)).collect();
    for ((lane, rows), recorded) in (0..).zip(&lanes).zip(&row.lane_digests) {
        let own = hex::encode(expected[lane as usize]);
        if !recorded.eq_ignore_ascii_case(&own) {
            let other = expected.iter().position(|other| hex::encode(other).eq_ignore_ascii_case(recorded));
            let what = match other {
                Some(other) => format!("it was fed what lane {other} should have been fed"),
                None => format!("it was fed other rows than the {} of the plan: {recorded}, not {own}", rows.len()),
            };
            found.find(Finding { step: Some(number), to: None, lane: Some(lane), what });
            continue;
        }
        for sample in rows {
            if due.take(*sample) {
                found.rows += 1;
                each(Fed {
                    epoch: found.epoch,
                    sample: *sample,
                    step: number,
                    lane,
                    fence: row.fence,
                    skipped: row.skipped,
                })?;
            } else {
                let what = format!("row {sample} is no row of the epoch, or was trained in it before");
                found.find(Finding { step: Some(number), to: None, lane: Some(lane), what });
            }
        }
    }
    let all = hex::encode(Sha256::digest(expected.concat()));
    if !row.sample_digest.eq_ignore_ascii_case(&all) {
        found.find(Finding::at(number, "the digest of all lanes is not that of the plan's"));
    }
    let samples: u64 = lanes.iter().map(|rows| rows.len() as u64).sum();
    if row.samples != samples {
        found.find(Finding::at(number, format!("its record counts {} samples, the plan {samples}", row.samples)));
    }
    Ok(())
}

/// As the protocol says: the ids as little-endian 64-bit numbers, in order.
fn digest(rows: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    rows.iter().for_each(|row| hash.update(row.to_le_bytes()));
    hash.finalize().into()
}

/// The rows of an epoch that no step was proven to contain so far.
struct Due {
    words: Vec<u64>,
}

impl Due {
    fn of(rows: impl Iterator<Item = u64>) -> Self {
        let mut words = Vec::new();
        for row in rows {
            let (word, bit) = Self::place(row);
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= bit;
        }
        Self { words }
    }

    fn place(row: u64) -> (usize, u64) {
        (usize::try_from(row / 64).unwrap_or(usize::MAX), 1 << (row % 64))
    }

    /// False when the row is no row of the epoch, or was taken before.
    fn take(&mut self, row: u64) -> bool {
        let (word, bit) = Self::place(row);
        let Some(word) = self.words.get_mut(word).filter(|word| **word & bit != 0) else { return false };
        *word &= !bit;
        true
    }

    fn left(&self) -> impl Iterator<Item = u64> + '_ {
        let bits = |(number, word): (u64, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| (word >> bit) & 1 != 0).map(move |bit| number * 64 + bit)
        };
        (0..).zip(&self.words).flat_map(bits)
    }
}

#[cfg(test)]
mod tests;
