//! Which tensors Poly has on a model.

use std::collections::BTreeSet;

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Init, Site};

use super::options::{AInit, Config, Mode};
use super::{A, B, LOGITS, bin};
use crate::adapter::common::{LINEAR, Selection, parameter, query_value, refuse};
use crate::plan::{Keep, Plan, PlannedTensor};

/// Logits begin within this.
pub(super) const NEAR_ZERO: f32 = 1e-3;

pub(super) fn plan(config: &Config, model: &dyn BackboneConfig) -> Result<Plan> {
    let selection = Selection { targets: &config.targets, layers: None, roles: LINEAR, default: query_value };
    let mut bins = BTreeSet::new();
    selection.plan(model, |site| {
        let mut tensors = skills(config, site)?.to_vec();
        let first = bins.insert(bin(config.router_granularity, site));
        if first && config.mode != Mode::Mu {
            tensors.push(logits(config, site));
        }
        Ok(tensors)
    })
}

/// `A` and `B` of a site.
fn skills(config: &Config, site: &Site) -> Result<[PlannedTensor; 2]> {
    let [q, s, r] = [config.n_splits, config.n_skills, config.r].map(|n| n as usize);
    let (input, output) = (site.dims.input, site.dims.output);
    divides(config, site)?;
    let bound = match config.a_init {
        AInit::Mttl => (1.0 / (3.0 * input as f32)).sqrt(),
        AInit::Peft => (q as f32 / input as f32).sqrt(),
    };
    let given = config.inventory.is_some();
    let first = |init| if given { Init::Derived } else { init };
    let b = if config.init_weights { Init::Zeros } else { Init::Uniform { bound: 1.0 / (r as f32).sqrt() } };
    let keep = if config.mode == Mode::Z { Keep::Saved } else { Keep::Trained };
    Ok([
        parameter(site, A, [q, s, input / q, r], first(Init::Uniform { bound })).keep(keep),
        parameter(site, B, [q, s, r, output / q], first(b)).keep(keep),
    ])
}

/// Refuses a site whose widths cannot be cut into so many parts.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn divides(config: &Config, site: &Site) -> Result<()> {
    let (q, input, output) = (config.n_splits as usize, site.dims.input, site.dims.output);
    if input.is_multiple_of(q) && output.is_multiple_of(q) {
        return Ok(());
    }
    let why = format!("{q} divides not both {input} and {output}, the widths of `{}`", site.path);
    Err(refuse("n_splits", &why).hint("give a divisor of all widths, or leave this module out"))
}

/// The logits that a site shares with those of its bin behind it.
pub(crate) fn logits(config: &Config, site: &Site) -> PlannedTensor {
    let name = format!("base_model.model.{}.poly_router.{LOGITS}", site.path);
    let shape = [config.tasks() as usize, (config.n_splits * config.n_skills) as usize];
    let known = config.inventory.is_some() && !config.task_names.is_empty();
    let init = if known { Init::Derived } else { Init::Uniform { bound: NEAR_ZERO } };
    PlannedTensor::trained(name, site.id, LOGITS, shape, init)
}
