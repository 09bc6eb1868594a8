//! Sequence classification: cross-entropy of one label a row.

use tch::Tensor;

use super::{Term, cross_entropy_sum};

/// Name of the term; it counts labelled rows.
pub const TERM: &str = "classification";

/// The loss of `logits` `[b, classes]` against `labels` `[b]`.
#[must_use]
pub fn terms(logits: &Tensor, labels: &Tensor) -> Vec<Term> {
    vec![Term { name: TERM, sum: cross_entropy_sum(logits, labels), coefficient: 1.0 }]
}

/// Rows whose largest logit is at the label.
#[must_use]
pub fn correct(logits: &Tensor, labels: &Tensor) -> f64 {
    tch::no_grad(|| logits.argmax(-1, false).eq_tensor(labels).sum(tch::Kind::Int64).int64_value(&[]) as f64)
}
