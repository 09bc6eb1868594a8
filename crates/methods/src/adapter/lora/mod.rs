//! LoRA: `y = W x + b + s B A drop(x)`, with `A` `[r, in]`, `B` `[out, r]` and `s = lora_alpha / r`, or
//! `lora_alpha / sqrt(r)` with `use_rslora` (Kalajdzievski 2023).
//!
//! Attaches to linear sites. Parameters, the product and its sum with the base result are float32 whatever the base's
//! precision; the sum is then rounded to it. Field names and files are PEFT's. Not here: variants that change more than
//! the formula above; see [`Options::LATER`].
//!
//! Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021.

mod peft;
#[cfg(feature = "torch")]
mod run;

use indexmap::IndexMap;
use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init, Role, Site, Sites};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::common::{Layers, Selection, Targets, peft_config, positive, query_value, refuse, share};
use super::{AdapterConfig, Export, Options};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};
use crate::options::Later;
use crate::plan::{Plan, PlannedTensor};

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
    /// Which biases are trained: `none`.
    pub bias: Bias,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Other ranks for some modules: names or expressions to ranks.
    pub rank_pattern: IndexMap<String, u32>,
    /// Other numerators for some modules.
    pub alpha_pattern: IndexMap<String, f64>,
    /// How `A` and `B` begin: `true` for uniform `A` and zero `B`, `gaussian` for normal `A` and zero `B`, `false` for
    /// both uniform, which is no identity.
    pub init_lora_weights: InitWeights,
    /// Whether weights are stored input first. Known from the model; the value is not used.
    pub fan_in_fan_out: bool,
}

/// `bias`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No bias is trained.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of targets.
    LoraOnly,
}

/// `init_lora_weights`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum InitWeights {
    /// The usual, or none.
    Flag(bool),
    /// By name.
    Named(String),
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
            fan_in_fan_out: false,
        }
    }
}

static CARD: Card = Card {
    name: "lora",
    kind: MethodKind::Adapter,
    title: "LoRA",
    summary: "Adds a trainable low-rank product to linear maps.",
    formula: "`y = W x + b + (lora_alpha / r) B A x` at every chosen linear map; `A` begins random, `B` at zero.",
    paper: "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv:2106.09685)",
    status: Status::Stable,
    roles: ROLES,
    sync: &[Sync::MeanGrads],
    mergeable: true,
    identity_at_init: true,
    peft_type: Some("LORA"),
    sample_job: include_str!("sample.yaml"),
    invalid: &[
        Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"r": "eight"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"lora_dropout": 1.0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"lora_alpha": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"bias": "all"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"use_dora": true}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"init_lora_weights": "pissa"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"rank_pattern": {"x": 0}}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"target_modules": "(", "r": 4}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"target_modules": "all-linear", "layers_to_transform": [0]}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
        Invalid { options: r#"{"lora_aplha": 16}"#, code: code::UNKNOWN_KEY },
    ],
};

const ROLES: &[Role] = &[Role::Linear, Role::Head];

impl Options for Config {
    const CARD: &'static Card = &CARD;

    const LATER: &'static [Later] = peft::LATER;

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
        if self.bias != Bias::None {
            return Err(refuse("bias", "this build trains no biases").hint("write `bias: none`"));
        }
        match &self.init_lora_weights {
            InitWeights::Flag(_) => Ok(()),
            InitWeights::Named(name) if name == "gaussian" => Ok(()),
            InitWeights::Named(name) => Err(refuse("init_lora_weights", &format!("`{name}` is not built"))
                .hint("one of true, false, gaussian")),
        }
    }
}

impl Config {
    fn rank(&self, path: &str) -> Result<u32> {
        Ok(Sites::pattern_value(path, &self.rank_pattern, "rank_pattern")?.copied().unwrap_or(self.r))
    }

    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "used by the hooks"))]
    fn scaling(&self, path: &str) -> Result<f64> {
        let alpha = Sites::pattern_value(path, &self.alpha_pattern, "alpha_pattern")?.copied().unwrap_or(self.lora_alpha);
        let r = f64::from(self.rank(path)?);
        Ok(if self.use_rslora { alpha / r.sqrt() } else { alpha / r })
    }

    fn selection(&self) -> Selection<'_> {
        Selection { targets: &self.targets, layers: Some(&self.layers), roles: ROLES, default: query_value }
    }

    fn tensors(&self, site: &Site) -> Result<[PlannedTensor; 2]> {
        let r = self.rank(&site.path)? as usize;
        let uniform = |fan_in: usize| Init::Uniform { bound: 1.0 / (fan_in as f32).sqrt() };
        let (a, b) = match &self.init_lora_weights {
            InitWeights::Flag(true) => (uniform(site.dims.input), Init::Zeros),
            InitWeights::Flag(false) => (uniform(site.dims.input), uniform(r)),
            InitWeights::Named(_) => (Init::Normal { std: 1.0 / r as f32 }, Init::Zeros),
        };
        let tensor = |part: &'static str, shape: [usize; 2], init| {
            PlannedTensor::trained(format!("base_model.model.{}.{part}.weight", site.path), site.id, part, shape, init)
        };
        Ok([tensor("lora_A", [r, site.dims.input], a), tensor("lora_B", [site.dims.output, r], b)])
    }
}

impl AdapterConfig for Config {
    fn card(&self) -> &'static Card {
        &CARD
    }

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.selection().plan(model, |site| self.tensors(site))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        peft_config(self, Some(&self.targets), model, plan, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(test)]
mod tests;
