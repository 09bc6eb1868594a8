//! An adapter with tensors: parameters in the plan's order and the method's hooks over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{
    Backbone, BackboneConfig, HookSet, Init, OpWeights, ParamTree, ScoredPass, Scoring, Site, SiteHook, SiteId, Sites,
    draw,
};
use serde_json::{Map, Value};
use tch::Tensor;

use super::board::Board;
use super::saved::Saved;
use super::{AdapterConfig, Context, Export, StepInfo, Written};
use crate::import::{check, frozen_copy};
use crate::plan::{Keep, Plan, PlannedTensor};

/// A method at one site.
pub trait SiteMethod: SiteHook + Send {
    /// The site's weights with the adapter folded in, without gradient, in the base's shape, as float32. `None` when
    /// that cannot be done.
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights>;

    /// Whether it only adds something that depends on the inputs alone, so that several of its kind add up.
    fn adds(&self) -> bool {
        false
    }

    /// `A` `[r, in]` and `B` `[out, r]` of `x -> B A x`, any scale in `B`, float32 and with gradient, where it adds nothing
    /// else to a linear map, dropout aside: for those that mix factors rather than results.
    fn low_rank(&self) -> Option<(Tensor, Tensor)> {
        None
    }

    /// What compositions need of a method that stands before the sum behind a part of a block.
    fn sublayer(&self) -> Option<&dyn super::bottleneck::Sublayer> {
        None
    }
}

/// The hooks of an adapter, by site.
pub type Hooks = BTreeMap<SiteId, Box<dyn SiteMethod>>;

/// The tensors of an adapter, whatever becomes of them.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// What was planned.
    pub plan: &'a Plan,
    /// The backbone's sites.
    pub sites: &'a Sites,
    /// The key of the task, the root of all draws.
    pub key: Key,
    /// What its hooks tell.
    pub board: &'a Arc<Board>,
    params: &'a ParamTree,
    kept: &'a BTreeMap<String, Tensor>,
}

impl<'a> Parts<'a> {
    /// These tensors, for a method that stands around another and gives it others than its own.
    pub(crate) fn of(
        (plan, sites): (&'a Plan, &'a Sites),
        key: Key,
        board: &'a Arc<Board>,
        params: &'a ParamTree,
        kept: &'a BTreeMap<String, Tensor>,
    ) -> Self {
        Self { plan, sites, key, board, params, kept }
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// `INTERNAL` when it is not there.
    pub fn get(&self, name: &str) -> Result<&'a Tensor> {
        let found = self.params.get(name).or_else(|| self.kept.get(name));
        found.ok_or_else(|| code::INTERNAL.error(format!("tensor `{name}` is not planned")))
    }

    /// The tensor that is `part` of a site.
    ///
    /// # Errors
    /// `INTERNAL` when it is not there.
    pub fn part(&self, site: SiteId, part: &str) -> Result<&'a Tensor> {
        let planned = self.plan.part(site, part);
        let missing = || code::INTERNAL.error(format!("`{}` has no planned {part}", self.site(site).path));
        self.get(&planned.ok_or_else(missing)?.name)
    }

    /// The site.
    #[must_use]
    pub fn site(&self, site: SiteId) -> &'a Site {
        &self.sites[site]
    }

    /// All sites of the backbone.
    pub fn sites(&self) -> impl Iterator<Item = &'a Site> {
        self.sites.iter()
    }

    /// The same with some of the tensors planned by a part of a composition.
    #[must_use]
    pub fn under(&self, plan: &'a Plan, key: Key) -> Self {
        Self { plan, key, ..*self }
    }
}

/// An adapter: one task's tensors and what they do to the backbone.
pub struct Adapter {
    config: Arc<dyn AdapterConfig>,
    plan: Arc<Plan>,
    sites: Arc<Sites>,
    key: Key,
    params: ParamTree,
    /// The tensors that are not trained.
    kept: BTreeMap<String, Tensor>,
    board: Arc<Board>,
    hooks: Hooks,
}

impl Adapter {
    /// Builds what `plan` says. Values come from `values` (all tensors of the file, by name) or are drawn from `key`, the
    /// key of job seed and task, so that every rank has the same.
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
        let decoded = match values.filter(|_| config.encodes()) {
            Some(file) => config.decoded(&plan, file)?,
            None => None,
        };
        let values = decoded.as_ref().or(values);
        if let Some(values) = values {
            check(&plan, values.iter().map(|(name, tensor)| (name.as_str(), shape_of(tensor))))?;
            same_base(&plan, base, values)?;
        }
        let (mut params, mut kept) = (ParamTree::default(), BTreeMap::new());
        for tensor in &plan.tensors {
            let value = match values.and_then(|values| values.get(&tensor.name)) {
                Some(value) => value.to_device(base.device()),
                None => fresh(&*config, tensor, base, key)?,
            };
            if tensor.keep == Keep::Trained {
                params.insert(tensor.name.as_str(), &value)?;
            } else {
                kept.insert(tensor.name.clone(), value.detach().copy());
            }
        }
        let sites = Arc::new(base.config().sites().clone());
        Self::over(config, plan, sites, key, params, kept)
    }

    fn over(
        config: Arc<dyn AdapterConfig>,
        plan: Arc<Plan>,
        sites: Arc<Sites>,
        key: Key,
        params: ParamTree,
        kept: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let board = Arc::new(Board::default());
        let parts = Parts { plan: &plan, sites: &sites, key, board: &board, params: &params, kept: &kept };
        let mut hooks = config.hooks(&parts)?;
        for site in &plan.saved {
            let of =
                |part| plan.part(*site, part).and_then(|tensor| params.get(&tensor.name)).map(Tensor::shallow_clone);
            let weight = of("weight").ok_or_else(|| code::INTERNAL.error("a saved module has no weight"))?;
            hooks.insert(*site, Box::new(Saved(OpWeights { weight, bias: of("bias") })));
        }
        Ok(Self { config, plan, sites, key, params, kept, board, hooks })
    }

    /// The same adapter over the same memory with gradients of its own: updates are seen by both. One for each lane.
    ///
    /// # Errors
    /// As [`AdapterConfig::hooks`].
    pub fn alias(&self) -> Result<Self> {
        let kept = self.kept.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let (config, plan, sites) = (Arc::clone(&self.config), Arc::clone(&self.plan), Arc::clone(&self.sites));
        Self::over(config, plan, sites, self.key, self.params.alias(), kept)
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

    /// The tensors that are not trained, by name: see [`Keep`].
    #[must_use]
    pub fn kept(&self) -> &BTreeMap<String, Tensor> {
        &self.kept
    }

    /// All its tensors.
    #[must_use]
    pub fn parts(&self) -> Parts<'_> {
        let Self { plan, sites, key, board, params, kept, .. } = self;
        Parts { plan, sites, key: *key, board, params, kept }
    }

    /// What its hooks tell in the course of a pass.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Its term of the loss: see [`AdapterConfig::regulariser`].
    #[must_use]
    pub fn regulariser(&self) -> Option<Tensor> {
        self.config.regulariser(&self.parts())
    }

    /// What it does after a step: see [`AdapterConfig::after_step`].
    ///
    /// # Errors
    /// As there.
    pub fn after_step(&self, step: StepInfo) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.config.after_step(&self.parts(), step)
    }

    /// What it does to its gradients before a step: see [`AdapterConfig::before_update`].
    ///
    /// # Errors
    /// As there.
    pub fn before_update(&self, step: StepInfo) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.config.before_update(&self.parts(), step)
    }

    /// What it does at the end of a phase: see [`AdapterConfig::end_phase`].
    ///
    /// # Errors
    /// As there.
    pub fn end_phase(&self, step: StepInfo) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.config.end_phase(&self.parts(), step)
    }

    /// The adapter that it writes of a context: see [`AdapterConfig::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, base: &dyn Backbone, context: &Context<'_>) -> Result<Written> {
        let _no_grad = tch::no_grad_guard();
        self.config.write(&self.parts(), base, context)
    }

    /// The tensors of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// As [`AdapterConfig::exported`].
    pub fn exported(&self) -> Result<Vec<(String, Tensor)>> {
        let _no_grad = tch::no_grad_guard();
        let parts = self.parts();
        if let Some(tensors) = self.config.exported(&parts)? {
            return Ok(tensors);
        }
        let in_file = self.plan.tensors.iter().filter(|tensor| tensor.in_file());
        in_file.map(|tensor| Ok((tensor.name.clone(), parts.get(&tensor.name)?.detach()))).collect()
    }

    /// `adapter_config.json` of these tensors.
    ///
    /// # Errors
    /// As [`AdapterConfig::exported_config`].
    pub fn adapter_config(&self, model: &dyn BackboneConfig, export: &Export<'_>) -> Result<Map<String, Value>> {
        let mut fields = self.config.adapter_config(model, &self.plan, export);
        fields.extend(self.exported_config()?);
        Ok(fields)
    }

    /// The fields of `adapter_config.json` that depend on its tensors.
    ///
    /// # Errors
    /// As [`AdapterConfig::exported_config`].
    pub fn exported_config(&self) -> Result<Map<String, Value>> {
        let _no_grad = tch::no_grad_guard();
        self.config.exported_config(&self.parts())
    }

    /// The weights of every site it acts on with the adapter folded in, as float32.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when the method cannot be merged at a site.
    pub fn merge(&self, sites: &Sites, base: &dyn Backbone) -> Result<BTreeMap<SiteId, OpWeights>> {
        self.merge_with(sites, &|id| base.weights(id))
    }

    /// [`Adapter::merge`] with other weights than the model's own.
    pub(crate) fn merge_with<'w>(
        &self,
        sites: &Sites,
        weights: &dyn Fn(SiteId) -> Option<&'w OpWeights>,
    ) -> Result<BTreeMap<SiteId, OpWeights>> {
        let _no_grad = tch::no_grad_guard();
        let merge = |id: &SiteId| {
            let hook = &self.hooks[id];
            let site = &sites[*id];
            let merged = weights(*id).and_then(|weights| hook.merged(site, weights));
            let refused = || {
                let name = self.config.card().name;
                let error = code::METHOD_CONFIG.error(format!("{name} cannot be merged into `{}`", site.path));
                match self.config.row_tasks() {
                    Some(tasks) if self.config.card().mergeable => error.hint(format!(
                        "it has {} tasks, and a model holds one: save one of them alone (`export_task`)",
                        tasks.count
                    )),
                    _ => error.hint("use the adapter unmerged"),
                }
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

    fn scoring(&self) -> Option<&dyn Scoring> {
        self.config.scores().then_some(self as &dyn Scoring)
    }
}

impl Scoring for Adapter {
    fn scored(&self, pass: &ScoredPass<'_>, hidden: &Tensor) {
        self.config.score(&self.parts(), pass, hidden);
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

fn fresh(config: &dyn AdapterConfig, tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
    let key = key.named("init").named(config.drawn_as(tensor));
    if tensor.init == Init::Derived {
        let _no_grad = tch::no_grad_guard();
        return config.initial(tensor, base, key);
    }
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
