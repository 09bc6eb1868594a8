//! LoRA: `y = W x + b + s B A drop(x)`, with `A` `[r, in]`, `B` `[out, r]` and `s = lora_alpha / r`, or
//! `lora_alpha / sqrt(r)` with `use_rslora` (Kalajdzievski 2023).
//!
//! Attaches to linear sites. Parameters, the product and its sum with the base result are float32 whatever the base's
//! precision; the sum is then rounded to it. Field names and files are PEFT's. What composes with the formula has a file of
//! its own: beginnings (`start`), DoRA (`dora`), trained biases (`common::biases`). LoRA+ is two options. Not here:
//! [`Options::LATER`].
//!
//! Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021.

#[cfg(feature = "torch")]
mod dora;
mod factors;
mod parameters;
mod peft;
#[cfg(feature = "torch")]
mod run;
mod start;
mod tokens;

use indexmap::IndexMap;
use pleach_nn::Sites;

pub(crate) use self::peft::LATER as LATER_OF_LORA;
pub use self::start::InitWeights;
use self::start::Start;
pub use self::tokens::Tokens;
use super::common::{Selection, biases, peft_config, query_value};
use super::prelude::*;
use crate::options::Later;

/// Options of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Rank.
    pub r: u32,
    /// Numerator of the scaling.
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
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Other ranks for some modules: names or expressions to ranks.
    pub rank_pattern: IndexMap<String, u32>,
    /// Other numerators for some modules.
    pub alpha_pattern: IndexMap<String, f64>,
    /// How `A` and `B` begin: `true` for uniform `A` and zero `B`, `gaussian` for normal `A` and zero `B`, `false` for
    /// both uniform, which is no identity, `orthogonal` for both random with a product of zero, `pissa`,
    /// `pissa_niter_N` or `olora` for a part of the frozen weight.
    pub init_lora_weights: InitWeights,
    /// Train a magnitude for each output, and with `A` and `B` the direction alone (DoRA).
    pub use_dora: bool,
    /// Give `B` a bias.
    pub lora_bias: bool,
    /// Single parameters to act on, by names or last parts of paths: experts in one tensor.
    pub target_parameters: Option<Vec<String>>,
    /// Ids of tokens whose rows of the token table are trained too, or such lists for several tables by name.
    pub trainable_token_indices: Option<Tokens>,
    /// Learning rate of `B`, biases and magnitudes, as a multiple of the task's (LoRA+).
    #[serde(skip_serializing)]
    pub loraplus_lr_ratio: f64,
    /// Learning rate of factors at token tables, as a multiple of the task's (LoRA+).
    #[serde(skip_serializing)]
    pub loraplus_lr_embedding: f64,
    /// Whether weights are stored input first. Known from the model; the value is not used.
    pub fan_in_fan_out: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            targets: Targets::default(),
            layers: Layers::default(),
            bias: Bias::None,
            use_rslora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            init_lora_weights: InitWeights::Flag(true),
            use_dora: false,
            lora_bias: false,
            target_parameters: None,
            trainable_token_indices: None,
            loraplus_lr_ratio: 1.0,
            loraplus_lr_embedding: 1.0,
            fan_in_fan_out: false,
        }
    }
}

const ROLES: &[Role] = &[Role::Linear, Role::Head, Role::Embed, Role::Conv];

/// Those, and what `target_parameters` can name besides.
const ALL_ROLES: &[Role] = &[Role::Linear, Role::Head, Role::Embed, Role::Conv, Role::Experts, Role::Router];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "lora",
        title: "LoRA",
        summary: "Adds a trainable low-rank product to linear maps.",
        formula: "`y = W x + b + (lora_alpha / r) B A x` at every chosen linear map; `A` begins random, `B` at zero.",
        paper: "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv:2106.09685)",
        roles: ALL_ROLES,
        peft_type: Some("LORA"),
        sample_job: include_str!("sample.yaml"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"r": "eight"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"lora_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"lora_alpha": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "some"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"use_qalora": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"alora_invocation_tokens": [1]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"corda_config": {"a": 1}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_lora_weights": "eva"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_lora_weights": "loftq"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_lora_weights": "orthogonal", "r": 5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_lora_weights": "pissa", "r": 4096}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"lora_bias": true, "use_dora": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_parameters": ["no_such_parameter"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"target_parameters": ["weight"], "use_dora": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"trainable_token_indices": [99999999]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"loraplus_lr_ratio": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"rank_pattern": {"x": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": "(", "r": 4}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"target_modules": "all-linear", "layers_to_transform": [0]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"lora_aplha": 16}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const LATER: &'static [Later] = LATER_OF_LORA;

    fn validate(&self) -> Result<()> {
        let ranks = || self.rank_pattern.iter().map(|(name, r)| (format!("rank_pattern.{name}"), *r));
        for (field, r) in [("r".to_owned(), self.r)].into_iter().chain(ranks()) {
            positive(&field, r)?;
        }
        let alphas = || self.alpha_pattern.iter().map(|(name, alpha)| (format!("alpha_pattern.{name}"), *alpha));
        for (field, alpha) in [("lora_alpha".to_owned(), self.lora_alpha)].into_iter().chain(alphas()) {
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(refuse(&field, "must be a positive number"));
            }
        }
        share("lora_dropout", self.lora_dropout)?;
        for (field, ratio) in
            [("loraplus_lr_ratio", self.loraplus_lr_ratio), ("loraplus_lr_embedding", self.loraplus_lr_embedding)]
        {
            if !(ratio.is_finite() && ratio > 0.0) {
                return Err(refuse(field, "must be a positive number"));
            }
        }
        let start = self.init_lora_weights.start()?;
        if self.lora_bias && !matches!(start, Start::Usual | Start::Random) {
            return Err(refuse("lora_bias", "needs `init_lora_weights` to be true or false"));
        }
        parameters::validate(self)?;
        if let Some(tokens) = &self.trainable_token_indices {
            tokens.validate()?;
        }
        if self.lora_bias && self.use_dora {
            return Err(refuse("lora_bias", "cannot be given together with `use_dora`"));
        }
        Ok(())
    }
}

impl Config {
    fn rank(&self, path: &str) -> Result<u32> {
        Ok(Sites::pattern_value(path, &self.rank_pattern, "rank_pattern")?.copied().unwrap_or(self.r))
    }

    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "used by the hooks"))]
    fn scaling(&self, path: &str) -> Result<f64> {
        let alpha =
            Sites::pattern_value(path, &self.alpha_pattern, "alpha_pattern")?.copied().unwrap_or(self.lora_alpha);
        let r = f64::from(self.rank(path)?);
        Ok(if self.use_rslora { alpha / r.sqrt() } else { alpha / r })
    }

    fn selection(&self) -> Selection<'_> {
        Selection { targets: &self.targets, layers: Some(&self.layers), roles: ROLES, default: query_value }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let start = self.init_lora_weights.start()?;
        let selection = self.selection();
        let mut sites = if parameters::alone(self) { Vec::new() } else { selection.sites(model)? };
        let chosen = parameters::choose(self, model, &sites)?;
        sites.extend(chosen.iter().map(|parameter| parameter.site));
        sites.sort_unstable();
        let mut plan = selection.plan_of(model, sites, |site| {
            let parameter = chosen.iter().find(|parameter| parameter.site == site.id);
            factors::planned(self, start, site, parameter.map_or(&site.path, |parameter| &parameter.module))
        })?;
        biases::plan(self.bias, model, &mut plan)?;
        if let Some(tokens) = &self.trainable_token_indices {
            tokens.plan(model, &mut plan)?;
        }
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let modules = match parameters::names(self) {
            None => plan.sites.clone(),
            Some(_) if parameters::alone(self) => Vec::new(),
            // The plan has those of both kinds; it was made from the same selection.
            Some(_) => self.selection().sites(model).unwrap_or_default(),
        };
        peft_config(self, Some(&self.targets), model, &Plan { sites: modules, ..Plan::default() }, export)
    }

    fn half(&self, tensor: &PlannedTensor) -> Option<Half> {
        Half::of(tensor.part, &["lora_A"], &["lora_B", "lora_bias"])
    }

    fn sized(&self, dim: Option<u32>, scale: Option<f64>, dropout: Option<f64>) -> Option<Box<dyn AdapterConfig>> {
        let r = dim.unwrap_or(self.r);
        let steps = if self.use_rslora { f64::from(r).sqrt() } else { f64::from(r) };
        let lora_alpha = scale.map_or(self.lora_alpha, |scale| scale * steps);
        Some(Box::new(Self { r, lora_alpha, lora_dropout: dropout.unwrap_or(self.lora_dropout), ..self.clone() }))
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        match tensor.part {
            "lora_A" | "lora_B" if tensor.name.contains("lora_embedding_") => self.loraplus_lr_embedding,
            "lora_B" | "lora_bias" | "magnitude" | "bias" => self.loraplus_lr_ratio,
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
        run::initial(self, tensor, base, key)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(test)]
mod tests;
