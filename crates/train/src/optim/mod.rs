//! Optimisers over one flat buffer in ParamTree order.
//!
//! Parameters, gradients and moments are float32 whatever the precision of the frozen base. Nothing here knows about
//! ranks: it is given the reduced, clipped gradient, so that equal inputs give equal bits on every rank.

mod adamw;
mod sgd;

use std::collections::BTreeMap;

use pleach_base::Result;
use pleach_spec::job::{OptimizerName, OptimizerSpec};
use tch::Tensor;

pub use adamw::AdamW;
pub use sgd::Sgd;

/// Consecutive parameters with one learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// How many.
    pub length: i64,
    /// Multiple of the task's rate.
    pub scale: f64,
    /// Whether the update at hand moves them; otherwise nothing of theirs changes, moments and counts included.
    pub moves: bool,
}

impl Span {
    /// The spans of tensors with these lengths and scales: neighbours of one scale are one.
    pub fn of(tensors: impl IntoIterator<Item = (i64, f64)>) -> Vec<Self> {
        Self::join(tensors.into_iter().map(|(length, scale)| Self { length, scale, moves: true }))
    }

    /// The same spans with as few borders as there can be.
    pub fn join(spans: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        for span in spans {
            match joined.last_mut() {
                Some(last) if last.scale == span.scale && last.moves == span.moves => last.length += span.length,
                _ => joined.push(span),
            }
        }
        joined
    }
}

/// The parts of `tensors` (each `[n]`) under each span that moves, with its multiple. Views: an update in place is seen by
/// all.
fn cut<'a, const N: usize>(
    spans: &'a [Span],
    tensors: [&'a Tensor; N],
) -> impl Iterator<Item = ([Tensor; N], f64)> + 'a {
    let mut at = 0;
    spans.iter().filter_map(move |span| {
        let parts = span.moves.then(|| tensors.map(|tensor| tensor.narrow(0, at, span.length)));
        at += span.length;
        Some((parts?, span.scale))
    })
}

/// An optimiser of one flat parameter buffer.
pub trait Optimizer: Send {
    /// Applies `grads` to `params` (both `[n]`, float32, same device) with learning rate `lr`, of which each span of
    /// the buffer takes its multiple. The spans cover the buffer in order; those that do not move are left alone.
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64, spans: &[Span]);

    /// Updates applied so far; a skipped step does not count.
    fn updates(&self) -> u64;

    /// Forgets all that it has seen.
    fn reset(&mut self);

    /// The moments by name, each `[n]`. Empty for an optimiser without state.
    fn moments(&self) -> BTreeMap<&'static str, Tensor>;

    /// Restores what [`Optimizer::updates`] and [`Optimizer::moments`] gave.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when a moment is missing or has another length.
    fn restore(&mut self, updates: u64, moments: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// The optimiser that a job asks for, over `n` parameters on `device`. `partial`: some updates leave some of them alone.
#[must_use]
pub fn build(spec: &OptimizerSpec, n: i64, device: tch::Device, partial: bool) -> Box<dyn Optimizer> {
    match spec.name {
        OptimizerName::AdamW if partial => Box::new(AdamW::partial(spec, n, device)),
        OptimizerName::AdamW => Box::new(AdamW::new(spec, n, device)),
        OptimizerName::Sgd => Box::new(Sgd::new(spec, n, device)),
    }
}

/// Copies the stored moment `name` into `into`, or says why it cannot be used.
fn restore_moment(into: &mut Tensor, name: &str, moments: &BTreeMap<String, Tensor>) -> Result<()> {
    let found = moments.get(name).ok_or_else(|| {
        pleach_base::code::ADAPTER_FORMAT
            .error(format!("trainer_state.safetensors: moment {name} is missing"))
            .hint("the checkpoint was written with another optimiser; start from it with `init_from` instead")
    })?;
    if found.size() != into.size() {
        return Err(pleach_base::code::ADAPTER_FORMAT.error(format!(
            "trainer_state.safetensors: moment {name} has {:?} elements, the adapter has {:?}",
            found.size(),
            into.size()
        )));
    }
    tch::no_grad(|| into.copy_(found));
    Ok(())
}
