//! `target_parameters`: factors at single parameters rather than modules, above all at experts in one tensor.
//!
//! A stack `[maps, out, in]` has one pair of factors a map, all in two tensors: `A` `[maps r, in]`, map by map, and `B`
//! `[out, r maps]`, whose columns go rank by rank. PEFT wraps the module that holds the parameter; of several
//! parameters of one module, all but the last are below as many `base_layer`s.

use std::collections::BTreeSet;

use pleach_base::{Result, code, suggest};
use pleach_nn::{BackboneConfig, Modules, Role, Site, SiteId, Sites, WeightLayout};

use super::Config;
use crate::adapter::common::refuse;

const FIELD: &str = "target_parameters";

/// A parameter that is a target.
pub(super) struct Chosen {
    pub(super) site: SiteId,
    /// The path of its wrapper, below which its factors are named.
    pub(super) module: String,
}

/// Whether parameters are the only targets.
pub(super) fn alone(config: &Config) -> bool {
    let none = match &config.targets.target_modules {
        None => true,
        Some(Modules::List(list)) => list.is_empty(),
        Some(Modules::Regex(_)) => false,
    };
    none && names(config).is_some()
}

/// The names, if there are any: PEFT writes an empty list for families that could have some.
pub(super) fn names(config: &Config) -> Option<&[String]> {
    config.target_parameters.as_deref().filter(|names| !names.is_empty())
}

/// Refuses what PEFT cannot do at single parameters.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(super) fn validate(config: &Config) -> Result<()> {
    if names(config).is_none() {
        return Ok(());
    }
    let with =
        [("lora_dropout", config.lora_dropout > 0.0), ("use_dora", config.use_dora), ("lora_bias", config.lora_bias)];
    match with.iter().find(|(_, given)| *given) {
        Some((other, _)) => Err(refuse(FIELD, &format!("cannot be given together with `{other}`"))),
        None => Ok(()),
    }
}

/// The parameters that are named, in the model's order.
///
/// # Errors
/// `TARGET_NOTHING` for a name that matches none; `METHOD_CONFIG` for a parameter that is a target already.
pub(super) fn choose(config: &Config, model: &dyn BackboneConfig, modules: &[SiteId]) -> Result<Vec<Chosen>> {
    let Some(names) = names(config) else { return Ok(Vec::new()) };
    let sites = model.sites();
    let matches =
        |path: &str, name: &str| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    for name in names {
        if !sites.iter().any(|site| parameter(site).is_some_and(|path| matches(&path, name))) {
            return Err(nothing(sites, name));
        }
    }
    let wanted = |site: &&Site| parameter(site).is_some_and(|path| names.iter().any(|name| matches(&path, name)));
    let chosen: Vec<&Site> = sites.iter().filter(wanted).collect();
    if let Some(twice) = chosen.iter().find(|site| modules.contains(&site.id)) {
        return Err(refuse(FIELD, &format!("`{}` is a target already", twice.path)));
    }
    let place = |(at, site): (usize, &&Site)| {
        let holder = holder(site);
        let above = chosen[at + 1..].iter().filter(|other| self::holder(other) == holder).count();
        Chosen { site: site.id, module: format!("{holder}{}", ".base_layer".repeat(above)) }
    };
    Ok(chosen.iter().enumerate().map(place).collect())
}

/// The path of a site's parameter, where factors can be added to it.
fn parameter(site: &Site) -> Option<String> {
    let weight = site.weight.as_ref().filter(|weight| weight.layout == WeightLayout::OutIn)?;
    match (site.role, weight.shape.len()) {
        (Role::Experts, 3) => Some(site.path.clone()),
        (Role::Linear | Role::Router | Role::Head, 2) => Some(format!("{}.weight", site.path)),
        _ => None,
    }
}

/// The module that holds the parameter.
fn holder(site: &Site) -> &str {
    match site.role {
        Role::Experts => site.path.rsplit_once('.').map_or("", |(module, _)| module),
        _ => &site.path,
    }
}

fn nothing(sites: &Sites, name: &str) -> pleach_base::Error {
    // Of every path as many last parts as the name has.
    let parts = name.split('.').count();
    let tail = |path: String| {
        let skip = path.split('.').count().saturating_sub(parts);
        path.split('.').skip(skip).collect::<Vec<_>>().join(".")
    };
    let tails: BTreeSet<_> = sites.iter().filter_map(parameter).map(tail).collect();
    let near = suggest::nearest_few(name, tails.iter().map(String::as_str).collect::<Vec<_>>(), 4);
    code::TARGET_NOTHING
        .error(format!("{FIELD}: `{name}` matches no parameter of the model"))
        .hint(format!("nearest: {}", near.join(", ")))
}
