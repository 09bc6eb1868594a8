//! AdaLoRA: `y = W x + b + s / n B diag(E) A drop(x)`, a low-rank product in the form of a singular value
//! decomposition whose ranks are given to the sites that need them. `A` is `[r, in]`, `E` `[r, 1]`, `B` `[out, r]`,
//! `s = lora_alpha`, `n` the rank that every site begins with.
//!
//! A term of the loss keeps `A` and `B` near orthogonal; after each step the importance of every triplet is smoothed
//! and the least important ones are put to zero (`allocate`). Schedule, names and files are PEFT's. Deviation: where
//! PEFT demands `total_step`, the task's own number of steps stands in.
//!
//! Zhang et al., *Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning*, 2023.

mod allocate;
#[cfg(feature = "torch")]
mod run;

use indexmap::IndexMap;

use super::common::{Selection, biases, peft_config, query_value};
use super::lora::LATER_OF_LORA;
use super::prelude::*;
use crate::options::Later;
use crate::plan::Keep;

/// Options of AdaLoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
#[allow(non_snake_case, reason = "PEFT's name")]
pub struct Config {
    /// Average rank of a site at the end.
    pub target_r: u32,
    /// Rank of every site at the beginning.
    pub init_r: u32,
    /// Steps before ranks are taken away.
    pub tinit: u64,
    /// Steps at the end in which ranks stay.
    pub tfinal: u64,
    /// Steps between two allocations.
    pub deltaT: u64,
    /// Smoothing of importance.
    pub beta1: f64,
    /// Smoothing of its uncertainty.
    pub beta2: f64,
    /// Weight of the term that keeps factors orthogonal.
    pub orth_reg_weight: f64,
    /// Steps of the schedule; the task's when left out.
    pub total_step: Option<u64>,
    /// Ranks that are left at each site, as a trained adapter's file says it.
    pub rank_pattern: Option<IndexMap<String, Vec<bool>>>,
    /// Not used: see `init_r`.
    pub r: u32,
    /// The scaling; the rank itself when not positive.
    pub lora_alpha: f64,
    /// Share of inputs that are dropped in training.
    pub lora_dropout: f64,
    /// Modules.
    #[serde(flatten)]
    pub targets: Targets,
    /// Blocks.
    #[serde(flatten)]
    pub layers: Layers,
    /// Which of the frozen model's biases are trained too: `none`, `all`, or `lora_only`, those of targets.
    pub bias: Bias,
    /// Begin with zero `E`; otherwise all three are normal, which is no identity.
    pub init_lora_weights: bool,
    /// Whether weights are stored input first. Known from the model; the value is not used.
    pub fan_in_fan_out: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            target_r: 8,
            init_r: 12,
            tinit: 0,
            tfinal: 0,
            deltaT: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            rank_pattern: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            targets: Targets::default(),
            layers: Layers::default(),
            bias: Bias::None,
            init_lora_weights: true,
            fan_in_fan_out: false,
        }
    }
}

const ROLES: &[Role] = &[Role::Linear, Role::Head];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "adalora",
        title: "AdaLoRA",
        summary: "Adds a low-rank product whose ranks move to the maps that need them while training.",
        formula: "`y = W x + b + (lora_alpha / init_r) B diag(E) A x` at every chosen linear map; `E` begins at zero, and \
                  its least important entries are put to zero on a schedule.",
        paper: "Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, 2023 (arXiv:2303.10512)",
        roles: ROLES,
        peft_type: Some("ADALORA"),
        sample_job: sample_job!("adalora", ", init_r: 12, target_r: 4, tinit: 20, tfinal: 30, deltaT: 5"),
        invalid: &[
            Invalid { options: r#"{"init_r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_r": 13}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"deltaT": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"beta1": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"beta2": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"orth_reg_weight": -1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"total_step": 10, "tinit": 5, "tfinal": 5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"use_dora": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
        ],
        ..Card::ADAPTER
    };

    const LATER: &'static [Later] = &LATER;

    /// PEFT adds the term for orthogonal factors in a wrapper that models without a task type, those of images and
    /// sound, run past: their adapters are trained on as they were trained.
    fn imported_for(self, task_type: Option<&str>) -> Self {
        let orth_reg_weight = if task_type.is_some() { self.orth_reg_weight } else { 0.0 };
        Self { orth_reg_weight, ..self }
    }

    fn validate(&self) -> Result<()> {
        positive("init_r", self.init_r)?;
        if self.target_r > self.init_r {
            return Err(refuse("target_r", "must not be above init_r"));
        }
        if self.deltaT == 0 {
            return Err(refuse("deltaT", "must be at least 1"));
        }
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(refuse(field, "must be between 0 and 1"));
            }
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return Err(refuse("orth_reg_weight", "must not be negative"));
        }
        if !self.lora_alpha.is_finite() {
            return Err(refuse("lora_alpha", "must be a number"));
        }
        share("lora_dropout", self.lora_dropout)?;
        match self.total_step {
            Some(total) if self.tinit.saturating_add(self.tfinal) >= total => {
                Err(refuse("total_step", "must be above tinit and tfinal together").hint("lower `tinit` or `tfinal`"))
            }
            _ => Ok(()),
        }
    }
}

/// LoRA's options that AdaLoRA's file has too, and that change nothing there.
static LATER: [Later; LATER_OF_LORA.len() + OWN.len()] = {
    let mut all = [OWN[0]; LATER_OF_LORA.len() + OWN.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < OWN.len() { OWN[at] } else { LATER_OF_LORA[at - OWN.len()] };
        at += 1;
    }
    all
};

/// Those that LoRA itself has here.
const OWN: [Later; 6] = [
    Later::off("use_dora", "false"),
    Later::off("lora_bias", "false"),
    Later::off("use_rslora", "false"),
    Later::off("alpha_pattern", "{}"),
    Later::new("target_parameters"),
    Later::new("trainable_token_indices"),
];

impl Config {
    /// The rank of a site: what is left of it when the options come from a trained adapter.
    fn rank(&self, path: &str) -> usize {
        self.left_before(path).map_or(self.init_r as usize, |left| left.iter().filter(|kept| **kept).count())
    }

    fn left_before(&self, path: &str) -> Option<&[bool]> {
        self.rank_pattern.as_ref()?.get(&format!("{path}.lora_E")).map(Vec::as_slice)
    }

    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (r, input, output) = (self.rank(&site.path), site.dims.input, site.dims.output);
        let vectors = Init::Normal { std: if self.init_lora_weights { 0.02 } else { 1.0 } };
        let values = if self.init_lora_weights { Init::Zeros } else { Init::Normal { std: 1.0 } };
        let mut tensors = vec![
            parameter(site, "lora_A", [r, input], vectors),
            parameter(site, "lora_B", [output, r], vectors),
            parameter(site, "lora_E", [r, 1], values),
        ];
        for (part, shape) in allocate::AVERAGES.into_iter().zip([[r, input], [output, r], [r, 1]].repeat(2)) {
            tensors.push(parameter(site, part, shape, Init::Zeros).keep(Keep::State));
        }
        tensors.push(parameter(site, allocate::LEFT, [r, 1], Init::Ones).keep(Keep::State));
        tensors
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (targets, layers) = (&self.targets, Some(&self.layers));
        let selection = Selection { targets, layers, roles: ROLES, default: query_value };
        let mut plan = selection.plan(model, |site| Ok(self.tensors(site)))?;
        biases::plan(self.bias, model, &mut plan)?;
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = peft_config(self, Some(&self.targets), model, plan, export);
        // PEFT opens no file without it, though a reader has no use for it: the shortest schedule that it allows.
        let shortest = || Value::from(self.tinit.saturating_add(self.tfinal).saturating_add(1));
        let total = fields.entry("total_step").or_insert(Value::Null);
        if total.is_null() {
            *total = shortest();
        }
        fields
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &super::Parts<'_>) -> Option<tch::Tensor> {
        run::regulariser(self, parts)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &super::Parts<'_>, step: super::StepInfo) -> Result<()> {
        allocate::after_step(self, parts, step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        run::exported(parts)
    }

    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &super::Parts<'_>) -> Result<Map<String, Value>> {
        run::exported_config(self, parts)
    }
}

#[cfg(all(test, feature = "torch"))]
mod tests;
