//! Squared differences of vectors: the mean over all their numbers.

use tch::{Kind, Tensor};

use super::Term;

/// Name of the term; it counts numbers.
pub const TERM: &str = "regression";

/// The loss of `vectors` against `targets`, both of one shape.
#[must_use]
pub fn terms(vectors: &Tensor, targets: &Tensor) -> Vec<Term> {
    let difference = vectors.to_kind(Kind::Float) - targets;
    vec![Term { name: TERM, sum: difference.square().sum(Kind::Float), coefficient: 1.0 }]
}
