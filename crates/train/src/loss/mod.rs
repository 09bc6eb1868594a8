//! Losses as lists of terms, with denominators that know the whole global batch.
//!
//! A term is a *sum* over what it counts (target tokens, rows, queries). Counts depend on data only, so the ranks add
//! them up before the forward; each micro-batch then contributes `coefficient * sum / global count`, and the *sum* of
//! all gradients is the gradient of the global loss whatever the split into ranks, lanes and micro-batches. Averaging
//! per-micro-batch means instead would weigh short sequences more.

pub mod classification;
pub mod contrastive;
pub mod language;
pub mod regression;

use std::collections::BTreeMap;

pub use pleach_data::IGNORE;
use tch::{Kind, Tensor};

/// One term of a loss over one micro-batch.
#[derive(Debug)]
pub struct Term {
    /// Stable name; the key of its denominator.
    pub name: &'static str,
    /// Scalar sum over what the term counts, with its graph.
    pub sum: Tensor,
    /// Weight of the term in the loss.
    pub coefficient: f64,
}

/// How many things each term counts: in one micro-batch, or, once reduced, in the whole global batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<&'static str, f64>);

impl Counts {
    /// Counts of one term.
    #[must_use]
    pub fn of(name: &'static str, count: f64) -> Self {
        Self(BTreeMap::from([(name, count)]))
    }

    /// Adds other counts, term by term.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// The count of a term; 0 when it has none.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

/// The scalar to run backward on: each term over its global denominator. A term that counts nothing in the whole
/// global batch contributes nothing.
///
/// `None` when no term contributes.
#[must_use]
pub fn total(terms: &[Term], denominators: &Counts) -> Option<Tensor> {
    terms
        .iter()
        .filter(|term| denominators.get(term.name) > 0.0)
        .map(|term| &term.sum * (term.coefficient / denominators.get(term.name)))
        .reduce(|sum, next| sum + next)
}

/// The value of the global loss from the reduced sums of its terms.
#[must_use]
pub fn value(sums: &[(&'static str, f64, f64)], denominators: &Counts) -> f64 {
    sums.iter()
        .filter(|(name, ..)| denominators.get(name) > 0.0)
        .map(|(name, sum, coefficient)| coefficient * sum / denominators.get(name))
        .sum()
}

/// Sum of the cross-entropies of `logits` `[n, classes]` against `labels` `[n]`, in float32; [`IGNORE`] rows count 0.
fn cross_entropy_sum(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.to_kind(Kind::Float).cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::Sum, IGNORE, 0.0)
}
