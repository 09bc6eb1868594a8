//! What was trained: the effective history of a task, from feed logs alone, and what it lost or repeated.
//!
//! Generations are ordered by (term, generation). Each goes on from a step, r. What a generation fed beyond the r of its
//! successor was given up and counts for nothing; what it fed up to there is in the model. So the steps of generation g are
//! `r_g + 1 ..= min(r of all later generations)`.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::feed::{Fence, Line};

/// How the dataset is cut: the harness made it, so it knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows of the dataset; their numbers are `0..rows`.
    pub(crate) rows: u64,
    /// Rows of a step; the last step of an epoch has what is left.
    pub(crate) batch: u64,
    /// Streams that a step is made of.
    pub(crate) lanes: u32,
    /// Steps of the whole job.
    pub(crate) steps: u64,
}

impl Shape {
    pub(crate) fn steps_per_epoch(self) -> u64 {
        self.rows.div_ceil(self.batch)
    }

    fn epoch_of(self, step: u64) -> u64 {
        (step - 1) / self.steps_per_epoch()
    }

    /// Rows that a step must have.
    fn rows_of(self, step: u64) -> u64 {
        let before = (step - 1) % self.steps_per_epoch() * self.batch;
        self.batch.min(self.rows - before)
    }

    /// Rows of all steps.
    pub(crate) fn samples(self) -> u64 {
        (1..=self.steps).map(|step| self.rows_of(step)).sum()
    }
}

#[derive(Debug, Default)]
struct Generation {
    resumes: BTreeSet<u64>,
    /// By step and lane; a lane that was fed twice has two entries.
    fed: BTreeMap<u64, BTreeMap<u32, Vec<Vec<u64>>>>,
}

/// Everything that was fed, by generation.
#[derive(Debug, Default)]
pub(crate) struct History {
    generations: BTreeMap<Fence, Generation>,
}

/// What the account found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    /// Generations that went on from somewhere.
    pub(crate) generations: u64,
    /// Steps of the job that are in the model.
    pub(crate) steps: u64,
    /// Rows of finished steps that are in no effective step of their epoch.
    pub(crate) samples_lost: u64,
    /// Rows that are in more than one effective place of their epoch.
    pub(crate) samples_repeated: u64,
    /// Rows that the dataset does not have.
    pub(crate) samples_unknown: u64,
    /// Steps with a lane that was fed more than once or does not exist, or with a wrong number of rows.
    pub(crate) steps_misshapen: u64,
    /// Generations whose ranks went on from different steps.
    pub(crate) resumes_that_differ: u64,
    /// Rows that were fed and given up again: work lost, not samples.
    pub(crate) samples_redone: u64,
    /// sha256 over the lanes' digests, by step: to be compared with the commit records.
    #[serde(skip)]
    pub(crate) digests: BTreeMap<u64, String>,
    /// Which generation made each step.
    #[serde(skip)]
    pub(crate) made_by: BTreeMap<u64, Fence>,
}

impl History {
    pub(crate) fn add(&mut self, line: &Line) {
        let generation = self.generations.entry(line.fence()).or_default();
        match line {
            Line::Resume(resume) => {
                generation.resumes.insert(resume.step);
            }
            Line::Fed(fed) => {
                let step = generation.fed.entry(fed.step).or_default();
                for lane in &fed.lanes {
                    step.entry(lane.lane).or_default().push(lane.samples.clone());
                }
            }
        }
    }

    /// The generation that made each step.
    fn effective(&self, steps: u64) -> BTreeMap<u64, Fence> {
        let mut made_by = BTreeMap::new();
        let mut upper = steps;
        for (fence, generation) in self.generations.iter().rev() {
            let Some(from) = generation.resumes.first().copied() else { continue };
            made_by.extend((from + 1..=upper).map(|step| (step, *fence)));
            upper = upper.min(from);
        }
        made_by
    }

    /// Counts, against what the dataset must give.
    pub(crate) fn account(&self, shape: Shape) -> Account {
        let made_by = self.effective(shape.steps);
        let mut account = Account {
            generations: self.generations.values().filter(|g| !g.resumes.is_empty()).count() as u64,
            resumes_that_differ: self.generations.values().filter(|g| g.resumes.len() > 1).count() as u64,
            ..Account::default()
        };
        let mut seen: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
        for (step, fence) in &made_by {
            let Some(lanes) = self.generations[fence].fed.get(step) else { continue };
            account.steps += 1;
            let epoch = seen.entry(shape.epoch_of(*step)).or_default();
            for row in lanes.values().flatten().flatten() {
                *epoch.entry(*row).or_default() += 1;
            }
            let rows: usize = lanes.values().flatten().map(Vec::len).sum();
            // A short step leaves lanes empty: whether those are written down does not matter.
            let once = lanes.iter().all(|(lane, fed)| *lane < shape.lanes && fed.len() == 1);
            account.steps_misshapen += u64::from(!once || rows as u64 != shape.rows_of(*step));
            account.digests.insert(*step, digest(shape.lanes, lanes));
        }
        account.samples_redone = self.fed() - seen.values().flat_map(BTreeMap::values).sum::<u64>();
        account.balance(shape, &seen);
        account.made_by = made_by;
        account
    }

    fn fed(&self) -> u64 {
        let steps = self.generations.values().flat_map(|g| g.fed.values());
        steps.flat_map(BTreeMap::values).flatten().map(|rows| rows.len() as u64).sum()
    }
}

impl Account {
    /// Lost and repeated, epoch by epoch. An epoch that the job leaves unfinished may have any of its rows, so only their
    /// number is known there.
    fn balance(&mut self, shape: Shape, seen: &BTreeMap<u64, BTreeMap<u64, u64>>) {
        let none = BTreeMap::new();
        for epoch in 0..=shape.epoch_of(shape.steps.max(1)) {
            let first = epoch * shape.steps_per_epoch() + 1;
            let last = (first + shape.steps_per_epoch() - 1).min(shape.steps);
            let due: u64 = (first..=last).map(|step| shape.rows_of(step)).sum();
            let rows = seen.get(&epoch).unwrap_or(&none);
            let known = rows.keys().filter(|row| **row < shape.rows).count() as u64;
            self.samples_lost += due.saturating_sub(known);
            self.samples_repeated += rows.values().map(|times| times - 1).sum::<u64>();
            self.samples_unknown += rows.len() as u64 - known;
        }
    }

    /// Whether every sample was trained exactly once.
    pub(crate) fn holds(&self, shape: Shape) -> bool {
        let wrong = self.samples_lost + self.samples_repeated + self.samples_unknown;
        wrong + self.steps_misshapen + self.resumes_that_differ == 0 && self.steps == shape.steps
    }
}

/// sha256 over the digests of all lanes, each over the row numbers of the lane (u64, little-endian).
fn digest(lanes: u32, fed: &BTreeMap<u32, Vec<Vec<u64>>>) -> String {
    let mut whole = Sha256::new();
    for lane in 0..lanes {
        let rows = fed.get(&lane).into_iter().flatten().flatten();
        let bytes: Vec<u8> = rows.flat_map(|row| row.to_le_bytes()).collect();
        whole.update(Sha256::digest(&bytes));
    }
    hex::encode(whole.finalize())
}
