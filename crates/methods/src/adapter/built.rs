//! An adapter with tensors: parameters in the plan's order and the method's hooks over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Backbone, HookSet, Init, OpWeights, ParamTree, Site, SiteHook, SiteId, Sites, draw};
use tch::Tensor;

use super::AdapterConfig;
use super::saved::Saved;
use crate::import::{check, frozen_copy};
use crate::plan::{Plan, PlannedTensor};

/// A method at one site.
pub trait SiteMethod: SiteHook + Send {
    /// The site's weights with the adapter folded in, without gradient, in the base's shape, as float32. `None` when
    /// that cannot be done.
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights>;
}

/// An adapter: one task's trainable parameters and what they do to the backbone.
pub struct Adapter {
    config: Arc<dyn AdapterConfig>,
    plan: Arc<Plan>,
    key: Key,
    params: ParamTree,
    hooks: BTreeMap<SiteId, Box<dyn SiteMethod>>,
}

impl Adapter {
    /// Builds what `plan` says. Values come from `values` (all of them, by name) or are drawn from `key`, the key of
    /// job seed and task, so that every rank has the same.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` naming the tensor when `values` lack one, have one too many, or have another shape;
    /// `ADAPTER_BASE` when they bring a copy of a frozen weight that is not the model's.
    pub fn build(
        config: Arc<dyn AdapterConfig>,
        plan: Arc<Plan>,
        base: &dyn Backbone,
        key: Key,
        values: Option<&BTreeMap<String, Tensor>>,
    ) -> Result<Self> {
        if let Some(values) = values {
            check(&plan, values.iter().map(|(name, tensor)| (name.as_str(), shape_of(tensor))))?;
            same_base(&plan, base, values)?;
        }
        let mut params = ParamTree::default();
        for tensor in &plan.tensors {
            let value = match values.and_then(|values| values.get(&tensor.name)) {
                Some(value) => value.to_device(base.device()),
                None => fresh(tensor, base, key)?,
            };
            params.insert(tensor.name.as_str(), &value)?;
        }
        Self::over(config, plan, key, params)
    }

    fn over(config: Arc<dyn AdapterConfig>, plan: Arc<Plan>, key: Key, params: ParamTree) -> Result<Self> {
        let mut hooks = config.hooks(&plan, &params, key)?;
        for site in &plan.saved {
            let of =
                |part| plan.part(*site, part).and_then(|tensor| params.get(&tensor.name)).map(Tensor::shallow_clone);
            let weight = of("weight").ok_or_else(|| code::INTERNAL.error("a saved module has no weight"))?;
            hooks.insert(*site, Box::new(Saved(OpWeights { weight, bias: of("bias") })));
        }
        Ok(Self { config, plan, key, params, hooks })
    }

    /// The same adapter over the same memory with gradients of its own: updates are seen by both. One for each lane.
    ///
    /// # Errors
    /// As [`AdapterConfig::hooks`].
    pub fn alias(&self) -> Result<Self> {
        Self::over(Arc::clone(&self.config), Arc::clone(&self.plan), self.key, self.params.alias())
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &dyn AdapterConfig {
        self.config.as_ref()
    }

    /// What was planned.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Trainable parameters, in the plan's order.
    #[must_use]
    pub fn params(&self) -> &ParamTree {
        &self.params
    }

    /// The weights of every site it acts on with the adapter folded in, as float32.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when the method cannot be merged at a site.
    pub fn merge(&self, sites: &Sites, base: &dyn Backbone) -> Result<BTreeMap<SiteId, OpWeights>> {
        let merge = |id: &SiteId| {
            let hook = &self.hooks[id];
            let site = &sites[*id];
            let merged = base.weights(*id).and_then(|weights| hook.merged(site, weights));
            let refused = || {
                let name = self.config.card().name;
                code::METHOD_CONFIG.error(format!("{name} cannot be merged into `{}`", site.path))
            };
            Ok((*id, merged.ok_or_else(refused)?))
        };
        self.hooks.keys().map(merge).collect()
    }
}

impl HookSet for Adapter {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.hooks.get(&site).map(|hook| hook.as_ref() as &dyn SiteHook)
    }
}

/// Copies of frozen weights must be those of this model.
fn same_base(plan: &Plan, base: &dyn Backbone, values: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, value) in values {
        let Some((site, part)) = frozen_copy(plan, name) else { continue };
        let weights = base.weights(site);
        let own = match part {
            "bias" => weights.and_then(|weights| weights.bias.as_ref()),
            _ => weights.map(|weights| &weights.weight),
        };
        if !own.is_some_and(|own| {
            own.size() == value.size() && own.equal(&value.to_device(own.device()).to_kind(own.kind()))
        }) {
            return Err(code::ADAPTER_BASE
                .error(format!("tensor `{name}`: not the frozen weight of this model"))
                .hint("the adapter was made for another base model"));
        }
    }
    Ok(())
}

fn shape_of(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|n| usize::try_from(*n).unwrap_or_default()).collect()
}

fn fresh(tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
    let key = key.named("init").named(&tensor.name);
    if let Some(value) = draw(tensor.init, key, &tensor.shape, base.device()) {
        return Ok(value);
    }
    debug_assert_eq!(tensor.init, Init::Base);
    let weights = base.weights(tensor.site);
    let value = match tensor.part {
        "bias" => weights.and_then(|weights| weights.bias.as_ref()),
        _ => weights.map(|weights| &weights.weight),
    };
    let missing = || code::INTERNAL.error(format!("tensor `{}` has no frozen one to copy", tensor.name));
    value.map(Tensor::shallow_clone).ok_or_else(missing)
}
