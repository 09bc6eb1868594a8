//! What is saved: the inventory, or one LoRA of a chosen task or of the average skill.

use pleach_nn::BackboneConfig;
use serde_json::{Map, Value};

use super::Config;
use super::options::Mode;
use crate::adapter::common::{Targets, own_config, peft_config};
use crate::adapter::{Export, lora};
use crate::plan::Plan;

/// Options that PEFT's file has not.
const OWN: &[&str] = &[
    "task_names",
    "lora_alpha",
    "router_granularity",
    "module_logits_relaxed_bernoulli",
    "module_logits_straight_through",
    "module_logits_l2_norm",
    "module_logits_dropout",
    "poly_use_shared_skill",
    "poly_average_correction",
    "module_logits_learning_rate",
    "adapters_learning_rate",
    "a_init",
    "mode",
    "inventory",
    "export_task",
];

impl Config {
    /// Whether one LoRA is saved.
    fn saves_lora(&self) -> bool {
        self.mode == Mode::Mu || self.export_task.is_some()
    }
}

pub(super) fn adapter_config(
    config: &Config,
    model: &dyn BackboneConfig,
    plan: &Plan,
    export: &Export<'_>,
) -> Map<String, Value> {
    let targets: Option<&Targets> = Some(&config.targets);
    if config.saves_lora() {
        let lora = lora::Config {
            r: config.r,
            lora_alpha: config.lora_alpha,
            targets: config.targets.clone(),
            ..lora::Config::default()
        };
        return peft_config(&lora, targets, model, plan, export);
    }
    if !config.is_peft() {
        // What was trained from is of no use to who reads it.
        return own_config(&Config { inventory: None, mode: Mode::Full, ..config.clone() }, model, export);
    }
    let mut fields = peft_config(config, targets, model, plan, export);
    OWN.iter().for_each(|name| drop(fields.shift_remove(*name)));
    fields
}

#[cfg(feature = "torch")]
pub(super) use imp::exported;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::Config;
    use crate::adapter::Parts;
    use crate::adapter::poly::routing::Skills;
    use crate::adapter::poly::{A, B, LOGITS, run};

    /// The tensors of the LoRA, beside those of modules that are saved whole.
    pub(in super::super) fn exported(config: &Config, parts: &Parts<'_>) -> Result<Option<Vec<(String, Tensor)>>> {
        if !config.saves_lora() {
            return Ok(None);
        }
        let mut tensors = Vec::new();
        for id in &parts.plan.sites {
            let site = parts.site(*id);
            let weights = run::weights_of(config, parts, site, config.chosen().unwrap_or_default())?;
            let part = |name| parts.part(*id, name).map(Tensor::detach);
            let skills = Skills { a: part(A)?, b: part(B)?, scale: config.scaling() };
            let (a, b) = skills.lora(&weights.detach());
            let name = |factor: &str| format!("base_model.model.{}.{factor}.weight", site.path);
            tensors.push((name("lora_A"), a.tr().contiguous()));
            tensors.push((name("lora_B"), b.tr().contiguous()));
        }
        let own = [A, B, LOGITS];
        for tensor in parts.plan.tensors.iter().filter(|tensor| tensor.in_file() && !own.contains(&tensor.part)) {
            tensors.push((tensor.name.clone(), parts.get(&tensor.name)?.detach()));
        }
        Ok(Some(tensors))
    }
}
