//! Cross-entropy of one label a row, or one a token where it stands: no shift.

use tch::Tensor;

use super::{Term, cross_entropy_sum};

/// Name of the term of sequence classification; it counts labelled rows.
pub const TERM: &str = "classification";

/// The loss of `logits` `[.., classes]` against `labels` `[..]`, as the term `name`; labels
/// [`IGNORE`](super::IGNORE) count nothing.
#[must_use]
pub fn terms(name: &'static str, logits: &Tensor, labels: &Tensor) -> Vec<Term> {
    let classes = logits.size()[logits.dim() - 1];
    let sum = cross_entropy_sum(&logits.reshape([-1, classes]), &labels.reshape([-1]));
    vec![Term { name, sum, coefficient: 1.0 }]
}

/// Labels whose logit is the largest.
#[must_use]
pub fn correct(logits: &Tensor, labels: &Tensor) -> f64 {
    tch::no_grad(|| logits.argmax(-1, false).eq_tensor(labels).sum(tch::Kind::Int64).int64_value(&[]) as f64)
}
