//! Which tensors VL-Adapter has: those of the adapter inside, some of them once a task, and the model's normalisations.

use pleach_base::Result;
use pleach_nn::{BackboneConfig, Role};

use super::hyper;
use super::options::{Config, Sharing};
use crate::adapter::{AdapterConfig, Owner, ln_tuning};
use crate::plan::{Plan, PlannedTensor};

/// What stands before the name of a task's own tensor.
const TASKS: &str = "tasks";

/// The name of a tensor that is the task's own.
pub(super) fn named(task: &str, name: &str) -> String {
    format!("{TASKS}.{task}.{name}")
}

/// Number of the task that a tensor belongs to, and its name without it.
pub(super) fn owner<'a>(config: &Config, name: &'a str) -> Option<(u32, &'a str)> {
    let (task, rest) = name.strip_prefix(TASKS)?.strip_prefix('.')?.split_once('.')?;
    let number = config.tasks.iter().position(|known| known.name == task)?;
    Some((number as u32, rest))
}

pub(super) fn owner_of(config: &Config, tensor: &PlannedTensor) -> Owner {
    match owner(config, &tensor.name) {
        Some((task, _)) if config.tasks.len() > 1 => Owner::Task(task),
        _ => Owner::All,
    }
}

/// Whether all tasks share a part.
pub(crate) fn shared(sharing: Sharing, part: &str) -> bool {
    let (down, up) = (part.starts_with("adapter_down") || part == "lora_A", part.starts_with("adapter_up") || part == "lora_B");
    // A normalisation of the adapter, and what Compacter shares among maps anyway, serve all tasks.
    let common = part.starts_with("adapter_norm") || part.starts_with("phm_rule");
    match sharing {
        Sharing::Single | Sharing::Hyper => true,
        Sharing::Multiple => common,
        Sharing::ShareUp => !down,
        Sharing::ShareDown => !up,
    }
}

pub(super) fn plan(config: &Config, adapter: &dyn AdapterConfig, model: &dyn BackboneConfig) -> Result<Plan> {
    let inner = adapter.plan(model)?;
    let mut plan = if config.sharing == Sharing::Hyper {
        config.check_width(model, false)?;
        hyper::plan(config, &inner, model)
    } else {
        if adapter.bottleneck().is_some() {
            config.check_width(model, adapter.card().name == "compacter")?;
        }
        replicated(config, inner)
    };
    if config.unfreeze_layer_norms {
        norms(model, &mut plan);
    }
    if config.train_visual_embedding {
        plan.notes.push(format!("{} reads no visual features: there is no embedding of them to train", model.info().class));
    }
    // Prompts that are not empty differ: see `Config::check`.
    let nameless = config.tasks.iter().filter(|task| !config.prompts() || task.prompt.is_empty()).count();
    if nameless > 1 && config.sharing == Sharing::Single {
        let why = format!("{nameless} tasks share everything and have no prompts: the model cannot tell them apart");
        plan.notes.push(why);
    }
    Ok(plan)
}

/// The plan with every task's own tensors in place of those that tasks do not share. Children: the plan as each task sees
/// it.
fn replicated(config: &Config, inner: Plan) -> Plan {
    let own = |tensor: &PlannedTensor| {
        !inner.saved.contains(&tensor.site) && !shared(config.sharing, tensor.part)
    };
    let mut plan = Plan { tensors: Vec::new(), children: Vec::new(), ..inner.clone() };
    for tensor in &inner.tensors {
        if own(tensor) {
            let of = |name: &str| PlannedTensor { name: named(name, &tensor.name), ..tensor.clone() };
            plan.tensors.extend(config.tasks.iter().map(|task| of(&task.name)));
        } else {
            plan.tensors.push(tensor.clone());
        }
    }
    for task in &config.tasks {
        let seen = |tensor: &PlannedTensor| match own(tensor) {
            true => PlannedTensor { name: named(&task.name, &tensor.name), ..tensor.clone() },
            false => tensor.clone(),
        };
        plan.children.push(Plan { tensors: inner.tensors.iter().map(seen).collect(), ..inner.clone() });
    }
    plan
}

/// The model's own normalisations, which all tasks share. Behind what the adapter has, before modules that are saved whole.
fn norms(model: &dyn BackboneConfig, plan: &mut Plan) {
    let norm = |site: &&pleach_nn::Site| {
        site.role == Role::Norm && site.weight.is_some() && !plan.saved.contains(&site.id)
    };
    let sites: Vec<_> = model.sites().iter().filter(norm).collect();
    let tensors: Vec<_> = sites.iter().flat_map(|site| ln_tuning::tensors(site)).collect();
    let whole = plan.tensors.iter().position(|tensor| plan.saved.contains(&tensor.site));
    let at = whole.unwrap_or(plan.tensors.len());
    plan.tensors.splice(at..at, tensors);
    plan.sites.extend(sites.iter().map(|site| site.id));
    plan.sites.sort_unstable();
    plan.sites.dedup();
}
