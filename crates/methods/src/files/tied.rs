//! From weights of sites to tensors of files: several sites may share one tensor, and an adapter may have changed only
//! some of them.

use std::collections::{BTreeMap, BTreeSet};

use pleach_base::{Error, Result, code};
use pleach_nn::{Backbone, OpWeights, Role, Site, SiteId};
use tch::{Kind, Tensor};

/// Tensors of a model that get other values.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New values by the class's names of tensors, float32.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// Tensors of files to leave out: second names of a shared tensor, which would be stale.
    pub(super) dropped: BTreeSet<String>,
    /// Sites that get a tensor of their own, which they shared before.
    pub(super) untied: Vec<String>,
}

/// # Errors
/// `METHOD_CONFIG` when sites that share a tensor would need different ones and the architecture cannot hold them
/// apart.
pub(super) fn changes(backbone: &dyn Backbone, weights: &BTreeMap<SiteId, OpWeights>) -> Result<Changes> {
    let mut changes = Changes::default();
    let sites = backbone.config().sites();
    for (id, new) in weights {
        let site = &sites[*id];
        let Some(weight) = &site.weight else { continue };
        if !changes.tensors.contains_key(&weight.name) {
            let sharers: Vec<&Site> =
                sites.iter().filter(|other| other.weight.as_ref().is_some_and(|w| w.name == weight.name)).collect();
            share(backbone, weights, &weight.name, &sharers, &mut changes)?;
        }
        match (&new.bias, &site.bias) {
            (Some(bias), Some(name)) => drop(changes.tensors.insert(name.clone(), bias.shallow_clone())),
            (Some(_), None) => {
                return Err(
                    code::METHOD_CONFIG.error(format!("`{}`: the base model has no bias to merge into", site.path))
                );
            }
            (None, _) => {}
        }
    }
    Ok(changes)
}

fn share(
    backbone: &dyn Backbone,
    weights: &BTreeMap<SiteId, OpWeights>,
    name: &str,
    sharers: &[&Site],
    changes: &mut Changes,
) -> Result<()> {
    let value = |site: &Site| match (weights.get(&site.id), backbone.weights(site.id)) {
        (Some(new), _) => Some(new.weight.to_kind(Kind::Float)),
        (None, frozen) => frozen.map(|frozen| frozen.weight.to_kind(Kind::Float)),
    };
    let own = |site: &Site| format!("{}.weight", site.path);
    let owner = sharers.iter().copied().find(|site| own(site) == name).or_else(|| sharers.first().copied());
    let Some((owner, kept)) = owner.and_then(|owner| Some((owner, value(owner)?))) else { return Ok(()) };
    for site in sharers.iter().filter(|site| site.id != owner.id) {
        let Some(other) = value(site) else { continue };
        if other.equal(&kept) {
            changes.dropped.insert(own(site));
            continue;
        }
        if site.role != Role::Head || backbone.config().info().reads.second.is_some() {
            return Err(apart(owner, site));
        }
        changes.untied.push(site.path.clone());
        // A head whose weight is its own reads its bias under its own name too.
        let own_bias = format!("{}.bias", site.path);
        let bias = weights.get(&site.id).or_else(|| backbone.weights(site.id)).and_then(|op| op.bias.as_ref());
        if let Some(bias) = bias.filter(|_| site.bias.as_ref() != Some(&own_bias)) {
            changes.tensors.insert(own_bias, bias.to_kind(Kind::Float));
        }
        changes.tensors.insert(own(site), other);
    }
    changes.tensors.insert(name.to_owned(), kept);
    Ok(())
}

fn apart(a: &Site, b: &Site) -> Error {
    code::METHOD_CONFIG
        .error(format!("`{}` and `{}` share one tensor, and the adapter makes them differ", a.path, b.path))
        .hint("this architecture cannot hold them apart: use the adapter unmerged")
}
