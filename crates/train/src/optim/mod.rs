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
}

impl Span {
    /// The spans of tensors with these lengths and scales: neighbours of one scale are one.
    pub fn of(tensors: impl IntoIterator<Item = (i64, f64)>) -> Vec<Self> {
        let mut spans: Vec<Self> = Vec::new();
        for (length, scale) in tensors {
            match spans.last_mut() {
                Some(last) if last.scale == scale => last.length += length,
                _ => spans.push(Self { length, scale }),
            }
        }
        spans
    }
}

/// The parts of `tensors` (each `[n]`) under each span, with its multiple. Views: an update in place is seen by all.
fn cut<'a, const N: usize>(
    spans: &'a [Span],
    tensors: [&'a Tensor; N],
) -> impl Iterator<Item = ([Tensor; N], f64)> + 'a {
    let mut at = 0;
    spans.iter().map(move |span| {
        let parts = tensors.map(|tensor| tensor.narrow(0, at, span.length));
        at += span.length;
        (parts, span.scale)
    })
}

/// An optimiser of one flat parameter buffer.
pub trait Optimizer: Send {
    /// Applies `grads` to `params` (both `[n]`, float32, same device) with learning rate `lr`, of which each span of
    /// the buffer takes its multiple. The spans cover the buffer in order.
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64, spans: &[Span]);

    /// Updates applied so far; a skipped step does not count.
    fn updates(&self) -> u64;

    /// The moments by name, each `[n]`. Empty for an optimiser without state.
    fn moments(&self) -> BTreeMap<&'static str, Tensor>;

    /// Restores what [`Optimizer::updates`] and [`Optimizer::moments`] gave.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when a moment is missing or has another length.
    fn restore(&mut self, updates: u64, moments: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// The optimiser that a job asks for, over `n` parameters on `device`.
#[must_use]
pub fn build(spec: &OptimizerSpec, n: i64, device: tch::Device) -> Box<dyn Optimizer> {
    match spec.name {
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
