//! A bottleneck beside something: two linear maps with an activation and dropout between them.

use tch::Tensor;

use super::Activation;

/// `s (U (keep * act(D h + d)) + u)`.
pub(crate) struct Branch {
    /// Weight `[dim, in]` and bias.
    pub(crate) down: (Tensor, Option<Tensor>),
    /// Weight `[out, dim]` and bias.
    pub(crate) up: (Tensor, Option<Tensor>),
    /// Between them.
    pub(crate) activation: Activation,
    /// Of the result.
    pub(crate) scale: f64,
}

impl Branch {
    /// For `h` `[.., in]`, in the precision of the weights; `keep` is what dropout leaves of the inner values.
    pub(crate) fn run(&self, h: &Tensor, keep: Option<&Tensor>) -> Tensor {
        let inner = self.activation.run(&h.linear(&self.down.0, self.down.1.as_ref()));
        let inner = keep.map_or_else(|| inner.shallow_clone(), |keep| &inner * keep);
        inner.linear(&self.up.0, self.up.1.as_ref()) * self.scale
    }
}
