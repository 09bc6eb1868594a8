//! Stage 2: frozen domain adapters, a gate at each of their places, and the task's own adapter.

use pleach_base::{Error, Result};
use pleach_base::rng::Key;
use pleach_nn::{BackboneConfig, Init, Part, Role, Site};
use serde_json::{Map, Value, json};

use super::options::{Config, Query};
use crate::adapter::common::{refuse, usual_init};
use crate::adapter::{AdapterConfig, Export, HasCard, Passes, StepInfo, Virtual, compose};
use crate::card::Card;
use crate::plan::{Plan, PlannedTensor};

/// Name in front of a gate's tensors.
pub(super) const GATE: &str = "gate";
/// The method of domain adapters.
pub(super) const DOMAIN: &str = "domain";

/// The mixture.
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) options: Config,
    pub(super) task: Box<dyn AdapterConfig>,
}

/// The name of a gate's tensor.
pub(super) fn gate_name(site: &Site, index: u32, part: &str) -> String {
    format!("{GATE}.base_model.model.{}.{index}.{part}", site.path)
}

/// The map that reads what the feed-forward part of a site's block reads.
pub(super) fn reader<'m>(sites: impl Iterator<Item = &'m Site>, of: &Site) -> Option<&'m Site> {
    let mut sites = sites.filter(|site| site.role == Role::Linear && site.block == of.block);
    sites.find(|site| site.part == Part::Up)
}

impl Mixture {
    fn reads(&self, model: &dyn BackboneConfig, site: &Site) -> Result<pleach_nn::SiteId> {
        match reader(model.sites().iter(), site) {
            Some(up) => Ok(up.id),
            None => Err(refuse("gate.input", &format!("the first map of the part of `{}` is not there", site.path))
                .hint("write `input: ffn_hidden`")),
        }
    }

    fn gate(&self, model: &dyn BackboneConfig, site: &Site, adapters: usize) -> Result<Vec<PlannedTensor>> {
        let gate = &self.options.gate;
        let mut input = match gate.input {
            Query::FfnHidden => site.dims.input,
            Query::AttentionOutput => model.sites()[self.reads(model, site)?].dims.input,
        };
        let mut tensors = Vec::new();
        for index in 0..=gate.layers {
            let last = index == gate.layers;
            let output = if last { adapters + 1 } else { gate.hidden as usize };
            let mut add = |part, name: &str, shape: Vec<usize>, init| {
                tensors.push(PlannedTensor::trained(gate_name(site, index, name), site.id, part, shape, init));
            };
            add("gate_weight", "weight", vec![output, input], usual_init(input));
            add("gate_bias", "bias", vec![output], if last { Init::Derived } else { Init::Zeros });
            input = output;
        }
        Ok(tensors)
    }

    /// The task's own adapter planned a tensor, as the others are a domain adapter's or a gate's.
    fn is_of_task(&self, tensor: &PlannedTensor) -> bool {
        let first = tensor.name.split('.').next().unwrap_or_default();
        first != GATE && !self.options.load_adapters.iter().any(|loaded| loaded.id == first)
    }

    #[cfg(feature = "torch")]
    pub(super) fn task_parts<'a>(&self, parts: &crate::adapter::Parts<'a>) -> Result<crate::adapter::Parts<'a>> {
        let plan = parts.plan.children.last();
        let missing = || pleach_base::code::INTERNAL.error("the plan is not that of a mixture");
        Ok(parts.under(plan.ok_or_else(missing)?, parts.key))
    }
}

/// An error about `adapters[i]` as one about an adapter that is loaded.
fn loaded(error: &Error) -> Error {
    let front = if error.message().starts_with("adapters") { "load_" } else { "" };
    error.code().error(format!("{front}{}", error.message())).maybe_hint(error.hint_text().map(str::to_owned))
}

impl HasCard for Mixture {
    fn card(&self) -> &'static Card {
        &super::CARD
    }
}

impl AdapterConfig for Mixture {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = compose::plan(&self.options.children(), true, model).map_err(|error| loaded(&error))?;
        for (at, _) in &mut plan.begins {
            *at = at.replacen("adapters", "load_adapters", 1);
        }
        let task = self.task.plan(model)?;
        let mut own = plan.sites.clone();
        for id in plan.sites.clone() {
            let site = &model.sites()[id];
            let adapters = plan.children.iter().filter(|child| child.sites.contains(&id)).count();
            if self.options.disable_moe {
                continue;
            }
            plan.tensors.extend(self.gate(model, site, adapters)?);
            if self.options.gate.input == Query::AttentionOutput {
                own.push(self.reads(model, site)?);
            }
        }
        if let Some(site) = task.sites.iter().chain(&task.saved).find(|site| own.contains(site)) {
            let why = format!("the adapter `{}` acts on `{}` too", self.task.card().name, model.sites()[*site].path);
            return Err(refuse("load_adapters", &why).hint("choose other modules for the task's adapter"));
        }
        plan.tensors.extend(task.tensors.iter().cloned());
        plan.sites = own;
        plan.sites.extend(&task.sites);
        plan.sites.sort_unstable();
        plan.notes.extend(task.notes.iter().cloned());
        plan.begins.extend(task.begins.iter().cloned());
        plan.saved.clone_from(&task.saved);
        plan.children.push(task);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut options = self.options.clone();
        // Their values are in the file.
        options.load_adapters.iter_mut().for_each(|loaded| loaded.init_from = None);
        let mut fields = match serde_json::to_value(options) {
            Ok(Value::Object(own)) => own,
            _ => Map::new(),
        };
        fields.retain(|name, _| !super::options::OF_FIRST.contains(&name.as_str()));
        let task = plan.children.last().unwrap_or(plan);
        let shared = [
            ("pleach_method", json!(self.card().name)),
            ("base_model_name_or_path", json!(export.base)),
            ("task_type", json!(model.info().head.task_type())),
            (crate::around::INNER, Value::Object(self.task.adapter_config(model, task, export))),
        ];
        fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
        fields.sort_keys();
        fields
    }

    fn virtual_tokens(&self) -> Virtual {
        self.task.virtual_tokens()
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        if self.is_of_task(tensor) { self.task.lr_scale(tensor) } else { 1.0 }
    }

    fn phases(&self, total: u64) -> Vec<u64> {
        self.task.phases(total)
    }

    fn partial(&self) -> bool {
        self.task.partial()
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        !self.is_of_task(tensor) || self.task.updates(tensor, step)
    }

    fn takes_part(&self, tensor: &PlannedTensor, step: StepInfo, key: Key) -> bool {
        !self.is_of_task(tensor) || self.task.takes_part(tensor, step, key)
    }

    fn shapes_gradients(&self) -> bool {
        self.task.shapes_gradients()
    }

    fn passes(&self) -> Passes {
        self.task.passes()
    }

    fn drawn_as<'t>(&self, tensor: &'t PlannedTensor) -> &'t str {
        if self.is_of_task(tensor) { self.task.drawn_as(tensor) } else { &tensor.name }
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        super::run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(&self, tensor: &PlannedTensor, base: &dyn pleach_nn::Backbone, key: Key) -> Result<tch::Tensor> {
        if self.is_of_task(tensor) {
            return self.task.initial(tensor, base, key);
        }
        match tensor.part {
            "gate_bias" => {
                Ok(super::gate::first_bias(self.options.gate.activation, tensor.shape[0]).to_device(base.device()))
            }
            _ => compose::initial(&self.options.children(), tensor, base, key),
        }
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &crate::adapter::Parts<'_>) -> Option<tch::Tensor> {
        self.task.regulariser(&self.task_parts(parts).ok()?)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.task.after_step(&self.task_parts(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.task.before_update(&self.task_parts(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.task.end_phase(&self.task_parts(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        let Some(mut tensors) = self.task.exported(&self.task_parts(parts)?)? else { return Ok(None) };
        for tensor in parts.plan.tensors.iter().filter(|tensor| tensor.in_file() && !self.is_of_task(tensor)) {
            tensors.push((tensor.name.clone(), parts.get(&tensor.name)?.detach()));
        }
        Ok(Some(tensors))
    }
}
