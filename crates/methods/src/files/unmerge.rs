//! The base model from a merged one and its adapter, where the mathematics allows it.
//!
//! With `m(W)` the merged weight of a frozen `W`, and `M` what the merged model has: additive methods have
//! `m(W) = W + D`, so `W = M - (m(M) - M)`; methods that scale have `m(W) = W * S` element by element, so
//! `W = M * M / m(M)` where `M` is not zero. Both are tried, and the one counts whose merging gives `M` again.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, code};
use pleach_nn::OpWeights;
use tch::{Kind, Tensor};

use super::Opened;
use super::merge::{Written, write};
use super::tied::changes;

/// How near the merged weight must be again, relative to its largest element: rounding of two float32 sums.
const NEAR: f64 = 1e-5;

/// Writes the model without the adapter into the new folder `to`. `opened` is the adapter on the *merged* model. Values
/// are the base's to rounding of the merged model's element kind.
///
/// # Errors
/// `METHOD_CONFIG` naming the site when the base cannot be worked out there: modules that were trained whole, methods
/// whose merging is neither a sum nor a scaling. Those of [`super::merge()`].
pub fn unmerge(opened: &Opened, to: &Path, kind: Option<Kind>) -> Result<Written> {
    let (adapter, backbone) = (&opened.adapter, opened.backbone.as_ref());
    let sites = backbone.config().sites();
    if let Some(site) = adapter.plan().saved.first() {
        let path = &sites[*site].path;
        return Err(code::METHOD_CONFIG
            .error(format!("`{path}` was trained whole: nothing is left of the base's"))
            .hint("take the base model from where it came"));
    }
    let merged = backbone_weights(opened)?;
    let again = adapter.merge_with(sites, &|id| merged.get(&id))?;
    let (mut subtracted, mut divided) = (BTreeMap::new(), BTreeMap::new());
    for (id, m) in &merged {
        let twice = &again[id];
        subtracted.insert(*id, both(m, twice, |m, twice| m + m - twice));
        divided.insert(*id, both(m, twice, |m, twice| (m * m / twice).nan_to_num(0.0, Some(0.0), Some(0.0))));
    }
    let mut base = BTreeMap::new();
    let from_sum = adapter.merge_with(sites, &|id| subtracted.get(&id))?;
    let from_scale = adapter.merge_with(sites, &|id| divided.get(&id))?;
    for (id, m) in &merged {
        let found = if near(&from_sum[id], m) {
            subtracted.remove(id)
        } else if near(&from_scale[id], m) {
            divided.remove(id)
        } else {
            None
        };
        let refused = || {
            let (name, path) = (adapter.config().card().name, &sites[*id].path);
            code::METHOD_CONFIG
                .error(format!("{name} at `{path}`: the base cannot be worked out from the merged weight"))
        };
        base.insert(*id, found.ok_or_else(refused)?);
    }
    write(opened, &changes(backbone, &base)?, base.len(), to, kind)
}

/// The merged model's weights at the sites of the adapter.
fn backbone_weights(opened: &Opened) -> Result<BTreeMap<pleach_nn::SiteId, OpWeights>> {
    let sites = opened.adapter.plan().sites.iter();
    let weights = sites.map(|id| {
        let site = &opened.backbone.config().sites()[*id];
        let none = || code::METHOD_CONFIG.error(format!("`{}` has no weight to unmerge", site.path));
        let weights = opened.backbone.weights(*id).ok_or_else(none)?;
        let bias = weights.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
        Ok((*id, OpWeights { weight: weights.weight.to_kind(Kind::Float), bias }))
    });
    weights.collect()
}

fn both(a: &OpWeights, b: &OpWeights, f: impl Fn(&Tensor, &Tensor) -> Tensor) -> OpWeights {
    let bias = a.bias.as_ref().map(|bias| b.bias.as_ref().map_or_else(|| bias.shallow_clone(), |other| f(bias, other)));
    OpWeights { weight: f(&a.weight, &b.weight), bias }
}

fn near(a: &OpWeights, b: &OpWeights) -> bool {
    let close = |a: &Tensor, b: &Tensor| {
        let scale = b.abs().max().double_value(&[]);
        (a - b).abs().max().double_value(&[]) <= NEAR * scale
    };
    close(&a.weight, &b.weight) && a.bias.as_ref().zip(b.bias.as_ref()).is_none_or(|(a, b)| close(a, b))
}
