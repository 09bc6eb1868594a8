//! The mathematics of learning classes task by task: what the strategies `lae` and `mos` do to tensors, and the measures
//! of a whole sequence. Pure functions; sites, options and steps are in the methods' own files.

#[cfg(feature = "torch")]
pub(crate) mod align;
#[cfg(feature = "torch")]
pub(crate) mod lae;
pub(crate) mod measures;
#[cfg(feature = "torch")]
pub(crate) mod mos;
pub(crate) mod options;
#[cfg(feature = "torch")]
pub(crate) mod pet;
pub(crate) mod sequence;
pub(crate) mod tasks;
#[cfg(feature = "torch")]
pub(crate) mod view;

#[cfg(feature = "torch")]
pub use align::Moments;
pub use measures::{Measures, measures};
pub use options::{Ensemble, MergeSchedule, Spread};
pub use sequence::Sequence;
#[cfg(feature = "torch")]
pub use sequence::Survey;

#[cfg(feature = "torch")]
use tch::Tensor;

/// Logits `[n, classes]` with those of all classes but the open ones at minus infinity: a softmax gives those nothing, and
/// they get no gradient.
#[cfg(feature = "torch")]
pub(crate) fn only(logits: &Tensor, open: impl Fn(i64) -> bool) -> Tensor {
    let classes = logits.size().last().copied().unwrap_or_default();
    let closed: Vec<bool> = (0..classes).map(|class| !open(class)).collect();
    logits.masked_fill(&Tensor::from_slice(&closed).to_device(logits.device()), f64::NEG_INFINITY)
}
