//! Evaluation: loss and accuracy for token and class predictions, ranks of passages for retrieval.
//!
//! Rows are shared between the ranks, each counted once. Retrieval embeds every distinct text once, so a passage that
//! several rows share is one candidate. Every rank ends with the same numbers. Not here: when to evaluate.

mod metrics;
mod ranking;
mod retrieval;
mod rows;
mod set;

use std::collections::BTreeMap;

use pleach_base::Result;
use pleach_comm::Collective;
use pleach_nn::{Backbone, HookSet};

pub use metrics::{Metric, wanted};
pub use set::EvalSet;

use crate::engine::Ground;
use crate::observer::Observer;

/// Most rows of a batch.
const MOST_ROWS: usize = 64;
/// Most tokens of a batch, padding included.
const MOST_TOKENS: usize = 16_384;

/// What an evaluation runs on.
pub(crate) struct Scorer<'a> {
    pub(crate) model: &'a dyn Backbone,
    pub(crate) group: &'a dyn Collective,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) hooks: &'a dyn HookSet,
    pub(crate) ground: Ground<'a>,
}

/// Metrics over so many rows or queries.
pub(crate) struct Scored {
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) samples: u64,
}

/// A collective call.
pub(crate) fn score(scorer: &Scorer<'_>, set: &EvalSet, metrics: &[Metric]) -> Result<Scored> {
    tch::no_grad(|| match set {
        EvalSet::Rows(examples) => rows::score(scorer, examples, metrics),
        EvalSet::Retrieval(retrieval) => retrieval::score(scorer, retrieval, metrics),
    })
}

/// Batches of sequences of similar length: indices into `lengths`, longest first, so that memory is at its peak at the
/// start. A function of `lengths` alone.
fn batches(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(lengths[*index]), *index));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        // The first of a batch is its longest.
        let fits = |batch: &Vec<usize>| batch.len() < MOST_ROWS && (batch.len() + 1) * lengths[batch[0]] <= MOST_TOKENS;
        match batches.last_mut() {
            Some(batch) if fits(batch) => batch.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn batches_hold_each_sequence_once_and_stay_small(lengths in prop::collection::vec(1usize..5000, 0..300)) {
            let batches = batches(&lengths);
            let mut all: Vec<_> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let longest = batch.iter().map(|index| lengths[*index]).max().unwrap();
                prop_assert!(batch.len() <= MOST_ROWS);
                prop_assert!(batch.len() == 1 || batch.len() * longest <= MOST_TOKENS);
            }
        }
    }
}
