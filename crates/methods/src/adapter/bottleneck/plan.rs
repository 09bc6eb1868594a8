//! Which tensors a bottleneck adapter has on a model.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init, Part, Role, Site};

use super::coupling;
use super::options::{Bn, InitWeights, Scaling, TrainedScaling};
use super::phm::{self, End};
use crate::adapter::saved;
use crate::plan::{Keep, Plan, PlannedTensor};

pub(super) const WEIGHT: [&str; 2] = ["adapter_down.weight", "adapter_up.weight"];
pub(super) const BIAS: [&str; 2] = ["adapter_down.bias", "adapter_up.bias"];
pub(super) const NORM_BEFORE: [&str; 2] = ["adapter_norm_before.weight", "adapter_norm_before.bias"];
pub(super) const NORM_AFTER: [&str; 2] = ["adapter_norm_after.weight", "adapter_norm_after.bias"];
pub(super) const GATE: [&str; 2] = ["gate.weight", "gate.bias"];
pub(super) const SCALING: &str = "scaling";

/// What a tensor's name says about where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// An adapter behind a part of a block.
    Sublayer,
    /// All of them.
    All,
    /// The map behind the embeddings.
    Coupling,
}

/// The tensors of one place as they are listed.
pub(super) struct Tensors<'a> {
    pub(super) list: &'a mut Vec<PlannedTensor>,
    pub(super) site: &'a Site,
    pub(super) owner: Owner,
}

impl Tensors<'_> {
    pub(super) fn add(&mut self, part: &'static str, shape: impl Into<Vec<usize>>, init: Init) {
        self.add_kept(part, shape, init, Keep::Trained);
    }

    pub(super) fn add_kept(&mut self, part: &'static str, shape: impl Into<Vec<usize>>, init: Init, keep: Keep) {
        let place = match self.owner {
            Owner::Sublayer => format!("{}.adapters", self.site.path.replace('@', ".")),
            Owner::All => "shared_parameters".to_owned(),
            Owner::Coupling => "invertible_adapters".to_owned(),
        };
        let name = format!("base_model.model.{place}.{part}");
        self.list.push(PlannedTensor::trained(name, self.site.id, part, shape, init).keep(keep));
    }
}

/// The sites behind parts of blocks that the options ask for, in order.
///
/// # Errors
/// `TARGET_NOTHING` when the model has none of them.
pub(super) fn sublayers<'m>(bn: &Bn, model: &'m dyn BackboneConfig) -> Result<Vec<&'m Site>> {
    let wanted = |site: &&Site| {
        let on = match site.part {
            Part::Attention => bn.mh_adapter,
            Part::CrossAttention => bn.cross_adapter,
            Part::FeedForward => bn.output_adapter,
            _ => false,
        };
        on && site.block.is_some_and(|block| !bn.leave_out.contains(&block))
    };
    let sites: Vec<_> = model.sites().with_role(Role::SublayerOut).filter(wanted).collect();
    if sites.is_empty() && (bn.mh_adapter || bn.output_adapter || bn.cross_adapter) {
        return Err(code::TARGET_NOTHING
            .error("leave_out: no block of the model gets an adapter")
            .hint(format!("the model has {} blocks, numbered from 0", model.info().num_blocks)));
    }
    Ok(sites)
}

/// The plan.
///
/// # Errors
/// As [`sublayers`] and [`coupling::sites`]; `METHOD_CONFIG` for widths that cannot be.
pub(super) fn plan(bn: &Bn, to_save: Option<&[String]>, model: &dyn BackboneConfig) -> Result<Plan> {
    let crosses = model.sites().with_role(Role::SublayerOut).any(|site| site.part == Part::CrossAttention);
    if bn.cross_adapter && !crosses {
        return Err(code::METHOD_CONFIG
            .error("cross_adapter: this model has no attention to an encoder")
            .hint("write `cross_adapter: false`"));
    }
    let (saved, whole) = saved::plan(to_save, model)?;
    let mut plan = Plan { saved, ..Plan::default() };
    if let Some(kind) = bn.inv_adapter {
        coupling::plan(bn, kind, model, &mut plan)?;
    }
    let sites = sublayers(bn, model)?;
    for site in &sites {
        let mut to = Tensors { list: &mut plan.tensors, site, owner: Owner::Sublayer };
        adapter(bn, site, &mut to)?;
    }
    if let (true, Some(site)) = (bn.phm_layer, sites.first()) {
        let hidden = site.dims.output;
        let width = bn.width(hidden, site.block.unwrap_or_default())?;
        phm::plan_shared(bn, hidden, width, &mut Tensors { list: &mut plan.tensors, site, owner: Owner::All });
    }
    plan.sites.extend(sites.iter().map(|site| site.id));
    plan.sites.sort_unstable();
    plan.tensors.extend(whole);
    Ok(plan)
}

fn adapter(bn: &Bn, site: &Site, to: &mut Tensors<'_>) -> Result<()> {
    let hidden = site.dims.output;
    let width = bn.width(hidden, site.block.unwrap_or_default())?;
    let norm = |names: [&'static str; 2], to: &mut Tensors<'_>| {
        to.add(names[0], [hidden], Init::Ones);
        to.add(names[1], [hidden], Init::Zeros);
    };
    if bn.ln_before {
        norm(NORM_BEFORE, to);
    }
    for (end, input, output) in [(End::Down, hidden, width), (End::Up, width, hidden)] {
        if bn.phm_layer {
            phm::plan(bn, end, input, output, to)?;
        } else {
            to.add(end.pick(WEIGHT), [output, input], first_values(bn.init_weights, end, input));
            to.add(end.pick(BIAS), [output], Init::Zeros);
        }
    }
    match bn.scaling {
        Scaling::Factor(_) => {}
        Scaling::Trained(TrainedScaling::Learned) => to.add(SCALING, [1], Init::Ones),
        Scaling::Trained(TrainedScaling::Channel) => to.add(SCALING, [hidden], Init::Ones),
    }
    if bn.ln_after {
        norm(NORM_AFTER, to);
    }
    if bn.use_gating {
        to.add(GATE[0], [1, hidden], Init::Normal { std: 0.02 });
        to.add(GATE[1], [1], Init::Zeros);
    }
    Ok(())
}

fn first_values(init: InitWeights, end: End, input: usize) -> Init {
    match (init, end) {
        (InitWeights::Bert, _) => Init::Normal { std: 0.02 },
        (InitWeights::MamAdapter, End::Down) => Init::Uniform { bound: 1.0 / (input as f32).sqrt() },
        (InitWeights::MamAdapter, End::Up) => Init::Zeros,
        // Normal values within two standard deviations: no simple distribution.
        (InitWeights::Houlsby, _) => Init::Derived,
    }
}

/// The site at which tensors that all adapters share are planned.
#[cfg(feature = "torch")]
pub(super) fn shared_site(plan: &Plan) -> Option<pleach_nn::SiteId> {
    let shared = |tensor: &&PlannedTensor| phm::SHARED_RULE.contains(&tensor.part) || tensor.part.starts_with("W_");
    plan.tensors.iter().find(shared).map(|tensor| tensor.site)
}
