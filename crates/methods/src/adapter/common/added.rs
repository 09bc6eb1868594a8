//! Methods whose whole effect on a linear map is a sum.

use pleach_base::Result;
use pleach_nn::{OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::Tensor;

use super::linear_delta;
use crate::adapter::{Hooks, Parts, SiteMethod};

/// What a method adds to a linear map.
pub(crate) trait Addition: Send {
    /// To the result, for the inputs `x` `[.., in]`: `[.., out]`, float32.
    fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor;

    /// To the frozen weight: `[out, in]`, float32.
    fn delta(&self) -> Tensor;
}

/// The hook of an [`Addition`]: the frozen map is run once for all adapters of a batch.
pub(crate) struct Added<A>(pub(crate) A);

impl<A: Addition> SiteHook for Added<A> {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let added = self.0.added(cx, &x[0]);
        y.iter().map(|y| (y + &added).to_kind(y.kind())).collect()
    }
}

impl<A: Addition> SiteMethod for Added<A> {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        Some(linear_delta(site, base, &self.0.delta()))
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
