//! Methods whose whole effect on a linear map is a sum.

use pleach_base::Result;
use pleach_nn::{BaseOp, OpWeights, Role, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::linear_delta;
use crate::adapter::{Hooks, Parts, SiteMethod};

/// What a method adds to a linear map.
pub(crate) trait Addition: Send {
    /// To the result, for the inputs `x` `[.., in]`: `[.., out]`, float32.
    fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor;

    /// To the frozen weight: `[out, in]`, float32; to that of a convolution anything with as many elements in order.
    fn delta(&self) -> Tensor;

    /// The same in this pass: with what training drops.
    fn delta_now(&self, _cx: &SiteCx<'_>) -> Tensor {
        self.delta()
    }
}

/// The hook of an [`Addition`]: the frozen map is run once for all adapters of a batch. A convolution runs a second time
/// with what is added to its weight.
pub(crate) struct Added<A> {
    addition: A,
    convolution: Option<Vec<i64>>,
}

impl<A: Addition> Added<A> {
    /// At this site.
    pub(crate) fn at(site: &Site, addition: A) -> Self {
        let shape = site.weight.iter().filter(|_| site.role == Role::Conv).map(|weight| &weight.shape);
        let sizes = |shape: &Vec<usize>| shape.iter().map(|n| *n as i64).collect();
        Self { addition, convolution: shape.map(sizes).next() }
    }
}

impl<A: Addition> SiteHook for Added<A> {
    fn shares_base(&self) -> bool {
        self.convolution.is_none()
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let added = self.addition.added(cx, &x[0]);
        y.iter().map(|y| (y + &added).to_kind(y.kind())).collect()
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        let Some(shape) = &self.convolution else { return self.after(cx, &x, y) };
        let weights = OpWeights { weight: self.addition.delta_now(cx).reshape(shape), bias: None };
        let added = base.run_with(&weights, &[x[0].to_kind(Kind::Float)]);
        y.iter().zip(&added).map(|(y, added)| (y + added).to_kind(y.kind())).collect()
    }
}

impl<A: Addition> SiteMethod for Added<A> {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        let delta = self.addition.delta();
        let delta = self.convolution.as_ref().map_or_else(|| delta.shallow_clone(), |shape| delta.reshape(shape));
        Some(linear_delta(site, base, &delta))
    }

    fn adds(&self) -> bool {
        true
    }
}

/// A hook at every site of the plan.
///
/// # Errors
/// Those of `make`.
pub(crate) fn at_sites<M: SiteMethod + 'static>(
    parts: &Parts<'_>,
    mut make: impl FnMut(&Site) -> Result<M>,
) -> Result<Hooks> {
    let hook = |id: &SiteId| Ok((*id, Box::new(make(parts.site(*id))?) as Box<dyn SiteMethod>));
    parts.plan.sites.iter().map(hook).collect()
}
