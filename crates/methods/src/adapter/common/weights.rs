//! Weights of linear sites whatever their stored layout: methods think in `[out, in]`.

use pleach_nn::{OpWeights, Site, WeightLayout};
use tch::{Kind, Tensor};

fn input_first(site: &Site) -> bool {
    site.weight.as_ref().is_some_and(|weight| weight.layout == WeightLayout::InOut)
}

/// The frozen weight of a linear site as `[out, in]`, float32. Of other sites: as stored.
pub(crate) fn dense(site: &Site, base: &OpWeights) -> Tensor {
    let weight = base.weight.to_kind(Kind::Float);
    if input_first(site) { weight.tr() } else { weight }
}

/// A weight `[out, in]` as the site stores it.
pub(crate) fn restored(site: &Site, weight: &Tensor) -> Tensor {
    if input_first(site) { weight.tr() } else { weight.shallow_clone() }
}

/// The site's weights with `weight` `[out, in]` in place of the frozen one; the bias as it is. Float32. What
/// `run_with` takes and `merged` gives.
pub(crate) fn with_weight(site: &Site, base: &OpWeights, weight: &Tensor) -> OpWeights {
    let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
    OpWeights { weight: restored(site, weight), bias }
}

/// The site's weights with `delta` `[out, in]` added. Float32.
pub(crate) fn linear_delta(site: &Site, base: &OpWeights, delta: &Tensor) -> OpWeights {
    with_weight(site, base, &(dense(site, base) + delta))
}
