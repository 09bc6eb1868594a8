//! Poly and MHR: an inventory of `S` low-rank skills at every linear map, of which each task has a learned mixture.
//! With `q` heads, `A` `[q, S, in / q, r]`, `B` `[q, S, r, out / q]` and the logits `Z` of a row's task `[q, S]`:
//! `w = sigmoid(Z) / sum_S sigmoid(Z)`, `A_t = cat_q sum_S w A` over the input, `B_t = cat_q sum_S w B` over the output,
//! `y = W x + b + (lora_alpha / r) B_t A_t x`.
//!
//! Parameters are averaged, not outputs; the router never looks at the input, only at the task that a row names. One head
//! is Poly, more are MHR; `mode: z` trains the logits alone on a given inventory (MHR-z), `mode: mu` trains an inventory
//! without a router, each skill with `1 / S`, and saves it as one LoRA (MHR-mu). Noise of the routing is drawn for each
//! sample by its id and for each linear map, also where maps share their logits.
//!
//! Ponti, Sordoni, Bengio, Reddy, *Combining Parameter-efficient Modules for Task-level Generalisation*, 2023; Caccia,
//! Ponti, Su, Pereira, Le Roux, Sordoni, *Multi-Head Adapter Routing for Cross-Task Generalization*, 2023.

mod bins;
mod export;
#[cfg(feature = "torch")]
mod inventory;
mod options;
pub(crate) mod plan;
#[cfg(feature = "torch")]
pub(crate) mod routing;
#[cfg(feature = "torch")]
pub(crate) mod run;
#[cfg(test)]
mod tests;

use pleach_spec::job::RowTasks;

pub(crate) use self::bins::bin;
pub use self::options::{AInit, Config, Granularity, Mode, TaskRef};
use super::common::LINEAR;
use super::prelude::*;
use super::Owner;

/// Parts of a site's tensors.
pub(crate) const A: &str = "poly_lora_A";
pub(crate) const B: &str = "poly_lora_B";
pub(crate) const LOGITS: &str = "module_logits";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "poly",
        title: "Poly and MHR",
        summary: "Mixes the parameters of low-rank skills for each task by learned, normalised weights.",
        formula: "`y = W x + b + (lora_alpha / r) B_t A_t x`, `A_t` and `B_t` the averages of `n_skills` pairs with the \
                  weights `sigmoid(Z_t) / sum sigmoid(Z_t)` of the row's task, for each of `n_splits` parts of input and \
                  output on their own; `B` begins at zero.",
        paper: "Ponti et al., Combining Parameter-efficient Modules for Task-level Generalisation, 2023 \
                (arXiv:2202.13914); Caccia et al., Multi-Head Adapter Routing for Cross-Task Generalization, 2023 \
                (arXiv:2211.03831)",
        roles: LINEAR,
        sync: &[Sync::MeanGrads, Sync::PerTaskGroups],
        peft_type: Some("POLY"),
        sample_job: sample_job!("poly", ", r: 4, n_skills: 4, n_splits: 4"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_skills": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_tasks": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_splits": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_tasks": 2, "task_names": ["a", "b", "c"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"task_names": ["a", "a"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_tasks": 3, "export_task": 3}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"task_names": ["a", "b"], "export_task": "c"}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"module_logits_relaxed_bernoulli": true, "module_logits_straight_through": true}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"module_logits_l2_norm": true, "poly_use_shared_skill": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"module_logits_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"module_logits_learning_rate": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"lora_alpha": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"router_granularity": "perhaps"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"poly_type": "moe"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"mode": "z"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"mode": "mu"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"mode": "mu", "inventory": "./a", "n_tasks": 2}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"target_modules": ".*(embed_tokens|word_embeddings)"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_split": 4}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"r": 2, "n_skills": 3, "n_splits": 2}"#;

    fn validate(&self) -> Result<()> {
        self.check()
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        plan::plan(self, model)
    }

    fn row_tasks(&self) -> Option<RowTasks> {
        let all = || RowTasks { count: self.tasks(), names: self.task_names.clone(), ..RowTasks::default() };
        (self.tasks() > 1).then(all)
    }

    fn owner(&self, tensor: &PlannedTensor) -> Owner {
        if tensor.part == LOGITS && self.tasks() > 1 { Owner::EachRow } else { Owner::All }
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        export::adapter_config(self, model, plan, export)
    }

    /// The task's rate is that of the skills.
    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        match tensor.part {
            LOGITS => self.module_logits_learning_rate / self.adapters_learning_rate,
            _ => 1.0,
        }
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        inventory::initial(self, tensor, base, key)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        export::exported(self, parts)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}
