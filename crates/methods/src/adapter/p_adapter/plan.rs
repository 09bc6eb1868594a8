//! Where p-Adapter stands and what it has there.

use std::collections::BTreeSet;

use pleach_nn::{Part, SiteId, Sites};

use super::super::common::Selection;
use super::super::prelude::*;
use super::{Attention, Config};

pub(super) const REDUCE: [&str; 2] = ["p_adapter.wi.weight", "p_adapter.wi.bias"];
pub(super) const GATE: [&str; 2] = ["p_adapter.wg.weight", "p_adapter.wg.bias"];
pub(super) const OUT: [&str; 2] = ["p_adapter.wo.weight", "p_adapter.wo.bias"];
pub(super) const P: &str = "p_adapter.p";
pub(super) const M: &str = "p_adapter.m";
pub(super) const DOWN: [&str; 2] = ["p_adapter.down.weight", "p_adapter.down.bias"];
pub(super) const UP: [&str; 2] = ["p_adapter.up.weight", "p_adapter.up.bias"];

/// The sites of one attention before its output projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    /// Where queries, keys and values come in.
    pub(super) kv: SiteId,
    /// Where its weights are.
    pub(super) scores: SiteId,
}

/// The attention whose output projection this is; `None` for other sites.
pub(super) fn spot(sites: &Sites, out: SiteId) -> Option<Spot> {
    let site = &sites[out];
    if site.part != Part::AttnOut || site.role != Role::Linear {
        return None;
    }
    let before = |role: Role| {
        let of_block = sites.with_role(role).filter(|other| other.block == site.block && other.id < out);
        of_block.last().map(|other| other.id)
    };
    Some(Spot { kv: before(Role::AttnKv)?, scores: before(Role::AttnScores)? })
}

/// Whether the attention of this output projection is on an encoder's output.
pub(super) fn is_cross(sites: &Sites, out: SiteId) -> bool {
    spot(sites, out).is_some_and(|spot| sites[spot.kv].part == Part::CrossAttention)
}

/// The output projections that are adapted, in order.
fn chosen(config: &Config, model: &dyn BackboneConfig) -> Result<Vec<SiteId>> {
    let sites = model.sites();
    let default = |site: &Site| site.role == Role::Linear && site.part == Part::AttnOut;
    let selection = Selection { targets: &config.targets, layers: None, roles: &[Role::Linear], default };
    let all = selection.sites(model)?;
    if let Some(other) = all.iter().find(|id| spot(sites, **id).is_none()) {
        let why = format!("`{}` is not the output projection of attention that shows its weights", sites[*other].path);
        return Err(refuse("target_modules", &why));
    }
    let crossed: BTreeSet<_> =
        sites.with_role(Role::AttnKv).filter(|site| site.part == Part::CrossAttention).map(|site| site.block).collect();
    let everywhere = crossed.is_empty() || config.targets.target_modules.is_some();
    let wanted = |id: &SiteId| {
        let kind = match config.sites {
            Attention::Both => true,
            Attention::Cross => is_cross(sites, *id),
            Attention::Own => !is_cross(sites, *id),
        };
        kind && (everywhere || crossed.contains(&sites[*id].block))
    };
    let kept: Vec<_> = all.into_iter().filter(wanted).collect();
    if kept.is_empty() {
        return Err(code::TARGET_NOTHING.error("sites: the model has no such attention").hint("self, cross or both"));
    }
    Ok(kept)
}

pub(super) fn plan(config: &Config, model: &dyn BackboneConfig) -> Result<Plan> {
    let (sites, out) = (model.sites(), chosen(config, model)?);
    if out.iter().any(|id| is_cross(sites, *id)) {
        check_bins(config, model)?;
    }
    let blocks: BTreeSet<_> = out.iter().map(|id| sites[*id].block).collect();
    let feeds = sites.with_role(Role::SublayerOut).filter(|site| {
        let wanted = config.ffn_adapter_reduction_factor.factor().is_some();
        wanted && site.part == Part::FeedForward && blocks.contains(&site.block)
    });
    let feeds: Vec<_> = feeds.map(|site| site.id).collect();
    let mut homes: Vec<_> = out.iter().chain(&feeds).copied().collect();
    homes.sort_unstable();
    let none: fn(&Site) -> bool = |_| false;
    let selection = Selection { targets: &config.targets, layers: None, roles: &[Role::Linear], default: none };
    let mut plan = selection.plan_of(model, homes, |site| tensors(config, sites, site))?;
    let hidden = out.iter().filter_map(|id| spot(sites, *id)).flat_map(|spot| [spot.kv, spot.scores]);
    plan.sites.extend(hidden);
    plan.sites.sort_unstable();
    Ok(plan)
}

/// More bins than an encoder ever has tokens cannot be meant.
fn check_bins(config: &Config, model: &dyn BackboneConfig) -> Result<()> {
    let info = model.info();
    let most = info.reads.first.fixed_tokens().unwrap_or(info.max_positions);
    if config.image_sample_len as usize > most {
        let why = format!("{} bins, and the encoder has {most} tokens at most", config.image_sample_len);
        return Err(refuse("image_sample_len", &why).hint("give as many bins as it has tokens, or fewer"));
    }
    Ok(())
}

fn tensors(config: &Config, sites: &Sites, site: &Site) -> Result<Vec<PlannedTensor>> {
    let d = site.dims.output;
    let normal = Init::Normal { std: 0.02 };
    let last = if config.zero_init_out { Init::Zeros } else { normal };
    let map = |names: [&'static str; 2], input: usize, output: usize, init: Init| {
        [tensor(site, names[0], vec![output, input], init), tensor(site, names[1], vec![output], Init::Zeros)]
    };
    let Some(spot) = spot(sites, site.id) else {
        let width = width("ffn_adapter_reduction_factor", d, config.ffn_adapter_reduction_factor.factor().unwrap_or(1))?;
        return Ok([map(DOWN, d, width, normal), map(UP, width, d, last)].concat());
    };
    let width = width("reduction_factor", d, config.reduction_factor)?;
    let heads = sites[spot.kv].dims.heads.map_or(1, |heads| heads.query);
    if !width.is_multiple_of(heads) {
        let why = format!("{d} / {} = {width} of `{}` cannot be split into {heads} heads", config.reduction_factor, site.path);
        return Err(refuse("reduction_factor", &why).hint("heads must divide what is left of the width"));
    }
    let mut all = [map(REDUCE, d, width, normal), map(GATE, d, width, normal), map(OUT, width, d, last)].concat();
    if config.learnable_p {
        all.push(tensor(site, P, vec![1], Init::Derived));
    }
    all.push(tensor(site, M, vec![1], Init::Zeros));
    Ok(all)
}

fn width(field: &str, d: usize, factor: u32) -> Result<usize> {
    let width = d / factor as usize;
    if width == 0 { Err(refuse(field, &format!("nothing is left of a width of {d}"))) } else { Ok(width) }
}

fn tensor(site: &Site, part: &'static str, shape: Vec<usize>, init: Init) -> PlannedTensor {
    let name = format!("base_model.model.{}.{part}", site.path.replace('@', "."));
    PlannedTensor::trained(name, site.id, part, shape, init)
}
