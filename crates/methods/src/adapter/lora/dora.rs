//! `use_dora`: direction and magnitude apart.
//!
//! `y = m / |V| (V x) + b` with `V = W + s B A`, its rows' norms `|V|` taken as constants, and one trained magnitude
//! `m` a row. Written as `y = (W x + b) + (m / |V| - 1) W x' + m / |V| s B A x'`, where `x'` is the dropped input, as
//! PEFT does. With a start taken from the base, `W` is what is left of it.
//!
//! Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, 2024.

use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteHook};
use tch::{Kind, Tensor};

use super::factors::Factors;
use crate::adapter::SiteMethod;
use crate::adapter::common::Dropout;

pub(super) struct Dora {
    pub(super) factors: Factors,
    pub(super) dropout: Dropout,
    pub(super) magnitude: Tensor, // [out]
}

/// Norms of the rows of `[out, in]`: `[out]`.
pub(super) fn norm(weight: &Tensor) -> Tensor {
    weight.flatten(1, -1).linalg_norm(2, [1i64].as_slice(), false, Kind::Float)
}

/// A vector laid along `axis` of what has as many axes as `like`: a convolution's channels are its second.
fn along(vector: &Tensor, like: &Tensor, axis: usize) -> Tensor {
    let mut shape = vec![1; like.dim()];
    shape[axis] = -1;
    vector.reshape(shape)
}

impl Dora {
    /// `m / |V|`: `[out]`.
    fn scale(&self, frozen: &Tensor) -> Tensor {
        let norm = tch::no_grad(|| norm(&(frozen + self.factors.dense())));
        self.magnitude.flatten(0, -1) / norm
    }
}

impl SiteHook for Dora {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        let (Some(weights), Some(first)) = (base.weights(), y.first()) else { return y };
        let (kind, wide) = (first.kind(), first.to_kind(Kind::Float));
        let frozen = tch::no_grad(|| Factors::frozen(cx.site, weights)); // [out, in]
        let scale = self.scale(&frozen);
        if cx.site.role == Role::Embed {
            return vec![((wide + self.factors.delta(&x[0])) * scale).to_kind(kind)];
        }
        let input = [self.factors.input(cx, &self.dropout, &x[0])];
        let conv = cx.site.role == Role::Conv;
        let scale = if conv { along(&scale, &wide, 1) } else { scale };
        let plain = match (self.dropout.is_on(cx), &weights.bias) {
            (true, _) if conv => base.run_with(&OpWeights { weight: frozen, bias: None }, &input).swap_remove(0),
            (true, _) => input[0].linear(&frozen, None::<&Tensor>),
            (false, Some(bias)) if conv => &wide - along(bias, &wide, 1),
            (false, Some(bias)) => &wide - bias,
            (false, None) => wide.shallow_clone(),
        };
        let delta = if conv { self.factors.rerun(&input, base) } else { Some(self.factors.delta(&input[0])) };
        let Some(delta) = delta else { return y };
        let (wide, plain) = match (self.factors.taken(&x[0]), self.factors.taken(&input[0])) {
            (Some(whole), Some(dropped)) => (wide - whole, plain - dropped),
            _ => (wide, plain),
        };
        let y = wide + (&scale - 1.0) * plain + scale * delta;
        vec![y.to_kind(kind)]
    }
}

impl SiteMethod for Dora {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        let frozen = Factors::frozen(site, base);
        let scale = along(&self.scale(&frozen), &frozen, 0);
        self.factors.stored(site, base, &((frozen + self.factors.dense()) * scale))
    }
}
