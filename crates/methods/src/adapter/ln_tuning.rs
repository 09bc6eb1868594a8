//! Tuning of normalisations: the scales (and shifts, where there are any) of layer and root-mean-square normalisations
//! are trained, everything else stays: `y = norm(x) * weight + bias`.
//!
//! Trained tensors are copies of the frozen ones and are saved whole, as PEFT does. The paper tunes all normalisations;
//! so does this by default, where PEFT's defaults differ by family.
//!
//! Zhao et al., *Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning*, 2023.

use super::common::{Selection, peft_config};
use super::prelude::*;

/// Options of the tuning of normalisations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Modules.
    #[serde(flatten)]
    pub targets: Targets,
}

const ROLES: &[Role] = &[Role::Norm];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "ln_tuning",
        title: "LayerNorm tuning",
        summary: "Trains the scales and shifts of normalisations.",
        formula: "`y = norm(x) * weight + bias` with `weight` and `bias` trained, from the frozen values on.",
        paper: "Zhao et al., Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, 2023 \
                (arXiv:2312.11420)",
        roles: ROLES,
        peft_type: Some("LN_TUNING"),
        sample_job: sample_job!("ln_tuning", ""),
        invalid: &[
            Invalid { options: r#"{"target_modules": "("}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": "all-linear"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"modules_to_save": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"r": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };
}

impl Config {
    fn selection(&self) -> Selection<'_> {
        let default = |site: &Site| site.role == Role::Norm && site.weight.is_some();
        Selection { targets: &self.targets, layers: None, roles: ROLES, default }
    }
}

/// The trained copies of a normalisation.
pub(crate) fn tensors(site: &Site) -> Vec<PlannedTensor> {
    let tensor = |part: &'static str, shape: Vec<usize>| {
        let name = format!("base_model.model.{}.ln_tuning_layers.{part}", site.path);
        PlannedTensor::trained(name, site.id, part, shape, Init::Base)
    };
    let weight = site.weight.as_ref().map(|weight| tensor("weight", weight.shape.clone()));
    let bias = site.bias.as_ref().map(|_| tensor("bias", vec![site.dims.output]));
    weight.into_iter().chain(bias).collect()
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.selection().plan(model, |site| Ok(tensors(site)))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        peft_config(self, Some(&self.targets), model, plan, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        let hook = |id: &pleach_nn::SiteId| {
            let weight = parts.part(*id, "weight")?.shallow_clone();
            let bias = parts.site(*id).bias.as_ref().map(|_| parts.part(*id, "bias")).transpose()?;
            let weights = pleach_nn::OpWeights { weight, bias: bias.map(tch::Tensor::shallow_clone) };
            Ok((*id, Box::new(super::saved::Saved(weights)) as Box<dyn super::SiteMethod>))
        };
        parts.plan.sites.iter().map(hook).collect()
    }
}
