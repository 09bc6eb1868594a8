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
use pleach_base::{Error, Result, code};
use pleach_nn::{BackboneConfig, Indices, Init, Modules, Part, Patterns, Role, Site, SiteId, Sites, Target};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AdapterConfig, Export, Options, saved};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};
use crate::options::Later;
use crate::plan::{Plan, PlannedTensor};

/// Options of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rank.
    pub r: u32,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Share of inputs that are dropped in training.
    pub lora_dropout: f64,
    /// Which modules: names or last parts of paths, a regular expression for the whole path, or `all-linear`; queries
    /// and values of attention when left out.
    #[schemars(with = "Option<ModulesSchema>")]
    pub target_modules: Option<Modules>,
    /// Modules that are left out although they match.
    #[schemars(with = "Option<ModulesSchema>")]
    pub exclude_modules: Option<Modules>,
    /// Which biases are trained: `none`.
    pub bias: Bias,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Modules that are trained and saved whole. Classification adds its head by itself.
    pub modules_to_save: Option<Vec<String>>,
    /// Numbers of the blocks to act on; all when left out.
    #[schemars(with = "Option<IndicesSchema>")]
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of blocks, when `layers_to_transform` is given and the name is not the usual one.
    #[schemars(with = "Option<ModulesSchema>")]
    pub layers_pattern: Option<Patterns>,
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

/// How lists of modules look in a schema.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the schema only")]
enum ModulesSchema {
    Text(String),
    List(Vec<String>),
}

/// How block numbers look in a schema.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the schema only")]
enum IndicesSchema {
    One(u32),
    Many(Vec<u32>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            bias: Bias::None,
            use_rslora: false,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
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
            if r == 0 {
                return Err(refuse(&field, "must be at least 1"));
            }
        }
        let alphas = || self.alpha_pattern.iter().map(|(name, alpha)| (format!("alpha_pattern.{name}"), *alpha));
        for (field, alpha) in [("lora_alpha".to_owned(), self.lora_alpha)].into_iter().chain(alphas()) {
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(refuse(&field, "must be a positive number"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(refuse("lora_dropout", "must be at least 0 and below 1"));
        }
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

fn refuse(field: &str, why: &str) -> Error {
    code::METHOD_CONFIG.error(format!("{field}: {why}"))
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

    fn targets(&self, model: &dyn BackboneConfig) -> Result<Vec<SiteId>> {
        let sites = model.sites();
        let saved = saved::names(self.modules_to_save.as_deref(), model);
        let default;
        let modules = match &self.target_modules {
            Some(modules) => modules,
            None => {
                default = default_targets(sites);
                &default
            }
        };
        let target = Target {
            modules,
            exclude: self.exclude_modules.as_ref(),
            saved: &saved,
            layers: self.layers_to_transform.as_ref(),
            pattern: self.layers_pattern.as_ref(),
            roles: ROLES,
        };
        target.select(sites)
    }

    fn tensors(&self, site: &Site) -> Result<[PlannedTensor; 2]> {
        let r = self.rank(&site.path)? as usize;
        let uniform = |fan_in: usize| Init::Uniform { bound: 1.0 / (fan_in as f32).sqrt() };
        let (a, b) = match &self.init_lora_weights {
            InitWeights::Flag(true) => (uniform(site.dims.input), Init::Zeros),
            InitWeights::Flag(false) => (uniform(site.dims.input), uniform(r)),
            InitWeights::Named(_) => (Init::Normal { std: 1.0 / r as f32 }, Init::Zeros),
        };
        let tensor = |part: &'static str, shape: [usize; 2], init| PlannedTensor {
            name: format!("base_model.model.{}.{part}.weight", site.path),
            site: site.id,
            part,
            shape: shape.to_vec(),
            init,
        };
        Ok([tensor("lora_A", [r, site.dims.input], a), tensor("lora_B", [site.dims.output, r], b)])
    }
}

/// PEFT's defaults for the families that it lists are the queries and values of attention.
fn default_targets(sites: &Sites) -> Modules {
    let chosen: Vec<_> = sites
        .iter()
        .filter(|site| site.role == Role::Linear && matches!(site.part, Part::Query | Part::Value))
        .map(|site| site.id)
        .collect();
    Modules::List(sites.shortest_names(&chosen))
}

impl AdapterConfig for Config {
    fn card(&self) -> &'static Card {
        &CARD
    }

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let sites = self.targets(model)?;
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for id in &sites {
            let site = &model.sites()[*id];
            plan.tensors.extend(self.tensors(site)?);
            if !site.runs {
                plan.notes.push(format!("`{}` is never run with this head: its tensors will not change", site.path));
            }
        }
        plan.tensors.extend(whole);
        plan.sites = sites;
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        peft::adapter_config(self, model, plan, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        plan: &Plan,
        params: &pleach_nn::ParamTree,
        key: pleach_base::rng::Key,
    ) -> Result<std::collections::BTreeMap<SiteId, Box<dyn super::SiteMethod>>> {
        run::hooks(self, plan, params, key)
    }
}

#[cfg(test)]
mod tests;
