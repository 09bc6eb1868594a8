//! Generative Adapter: a trained generator writes a low-rank adapter from a context, by forward passes alone.
//!
//! For a target `W0` `[o, n]` in a decoder block with input hidden states `H` (before the block's own norm):
//!
//! ```text
//! K_t = RMSNorm(H_t) A2^T,  V_t = RMSNorm(H_t) A3^T                     of chunk t, padding left out
//! S_t = S_(t-1) + K_t^T V_t,   S^ = U V^T of its first singular directions (or S / |S|)
//! y   = W0 x + alpha / r  B S^^T (A1 x)                                 for segments behind chunk t
//! ```
//!
//! A row is a document, cut into chunks of at most `window` tokens. Chunks are sequences of their own: attention stays
//! inside, positions begin anew, and chunk j gets the map of chunks before it, all in one pass. `completion` predicts
//! chunks 1 and on; `reconstruction` appends, for every chunk i, a drawn window of the first i + 1 chunks, which gets
//! their map and feeds none. The state is the method's alone: all segments of a row are on one rank, and nothing about
//! them is exchanged. `B` begins at zero.
//!
//! Deviations. The derivative of `U V^T` is worked out rather than taken from the decomposition (`normal.rs`). Singular
//! values at rounding level are dropped, where the reference keeps arbitrary directions. Small states are decomposed
//! whole, large ones by the reference's one power iteration, from a beginning drawn by step and site. All of it is
//! float32, whatever the base's precision.
//!
//! Chen, Fang, Xia, Liu, Van Durme, Zettlemoyer, Gao, Cheng, *Generative Adapter: Contextualizing Language Models in
//! Parameters with A Single Forward Pass*, ICLR 2025.

#[cfg(feature = "torch")]
mod generate;
#[cfg(feature = "torch")]
pub(crate) mod normal;
#[cfg(feature = "torch")]
mod rows;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
pub(crate) mod state;
#[cfg(test)]
mod tests;

use pleach_nn::{Part, SiteId};

use super::common::{Selection, own_config, positive_number};
use super::prelude::*;
use super::Segments;

options! {
    /// Options of Generative Adapter.
    pub struct Config {
        /// Width `r` of the state, and what `fastlora_alpha` is divided by.
        fastlora_r: u32 = 1024,
        /// The state's other width; `fastlora_r` when left out.
        fastlora_inter_size: Option<u32> = None,
        /// Singular directions that a written adapter keeps: its rank, with the norm `svd`.
        fastlora_max_rank: u32 = 128,
        /// What is added is multiplied by `fastlora_alpha / fastlora_r`.
        fastlora_alpha: f64 = 64.0,
        /// What becomes of the summed state: `svd`, `frobenius` or `spectral`.
        fastlora_norm: Normalise = Normalise::Svd,
        /// How chunk states are merged, before the norm: `pre-norm-sum` or `pre-norm-mean`.
        fastlora_merge: Merge = Merge::PreNormSum,
        /// Most tokens of a segment.
        window: u32 = 1024,
        /// What is trained: `reconstruction` of windows that were read, `completion` of the document.
        tasks: Vec<Goal> = vec![Goal::Reconstruction, Goal::Completion],
        /// Share of a target's input that is dropped in training before it meets the generated map.
        dropout: f64 = 0.0,
        /// Modules: the output projections of attention when left out.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
    }
}

/// What becomes of the summed state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Normalise {
    /// `U V^T` of its first singular directions.
    Svd,
    /// Divided by its Frobenius norm.
    Frobenius,
    /// Divided by its largest singular value.
    Spectral,
}

/// How chunk states become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Merge {
    /// Added.
    PreNormSum,
    /// Averaged.
    PreNormMean,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// Windows of chunks that were read.
    Reconstruction,
    /// Chunks from those before them.
    Completion,
}

const A1: &str = "fastlora_A1";
const A2: &str = "fastlora_A2";
const A3: &str = "fastlora_A3";
const B: &str = "fastlora_B";
const NORM: &str = "fastlora_norm";

const ROLES: &[Role] = &[Role::Linear];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "generative",
        title: "Generative Adapter",
        summary: "A generator that is trained to write a low-rank adapter from a context by forward passes alone.",
        formula: "`y = W0 x + alpha / r B norm(sum K^T V)^T (A1 x)`, `K = RMSNorm(H) A2^T`, `V = RMSNorm(H) A3^T` of the \
                  earlier segments' block inputs `H`; `B` begins at zero.",
        paper: "Chen et al., Generative Adapter: Contextualizing Language Models in Parameters with A Single Forward \
                Pass, ICLR 2025 (arXiv:2411.05877)",
        roles: &[Role::Linear, Role::BlockIn],
        sync: &[Sync::MeanGrads],
        mergeable: false,
        sample_job: sample_job!("generative", ", fastlora_r: 32, fastlora_max_rank: 8, window: 64"),
        invalid: &[
            Invalid { options: r#"{"fastlora_r": 8, "fastlora_max_rank": 9}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_max_rank": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_inter_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_alpha": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_merge": "post-norm-sum"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fastlora_norm": "none"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"window": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"window": 100000000}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"tasks": ["translation"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"svd_dtype": "bfloat16"}"#, code: code::UNKNOWN_KEY },
            Invalid { options: r#"{"target_modules": ["lm_head"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str =
        r#"{"fastlora_r": 6, "fastlora_inter_size": 5, "fastlora_max_rank": 3, "fastlora_alpha": 6, "window": 4}"#;

    fn validate(&self) -> Result<()> {
        positive("fastlora_r", self.fastlora_r)?;
        positive("fastlora_max_rank", self.fastlora_max_rank)?;
        self.fastlora_inter_size.map_or(Ok(()), |size| positive("fastlora_inter_size", size))?;
        positive_number("fastlora_alpha", self.fastlora_alpha)?;
        if self.fastlora_max_rank > self.fastlora_r {
            let why = format!("{} directions are more than the state has, fastlora_r", self.fastlora_max_rank);
            return Err(refuse("fastlora_max_rank", &why));
        }
        if self.window < 2 {
            return Err(refuse("window", "a segment needs two tokens, so that one is predicted"));
        }
        if self.tasks.is_empty() {
            return Err(refuse("tasks", "name `reconstruction`, `completion` or both"));
        }
        share("dropout", self.dropout)
    }
}

impl Config {
    /// What the addition is multiplied with.
    #[cfg(feature = "torch")]
    pub(crate) fn scale(&self) -> f64 {
        self.fastlora_alpha / f64::from(self.fastlora_r)
    }

    fn tensors(&self, site: &Site, hidden: usize) -> Vec<PlannedTensor> {
        let r = self.fastlora_r as usize;
        let q = self.fastlora_inter_size.unwrap_or(self.fastlora_r) as usize;
        // Kaiming, normal, with `a = sqrt(5)`.
        let normal = |input: usize| Init::Normal { std: 1.0 / (3.0 * input.max(1) as f32).sqrt() };
        vec![
            parameter(site, A1, [q, site.dims.input], normal(site.dims.input)),
            parameter(site, A2, [q, hidden], normal(hidden)),
            parameter(site, A3, [r, hidden], normal(hidden)),
            parameter(site, B, [site.dims.output, r], Init::Zeros),
            parameter(site, NORM, [hidden], Init::Ones),
        ]
    }

    /// Whether this goal is trained.
    pub(crate) fn wants(&self, goal: Goal) -> bool {
        self.tasks.contains(&goal)
    }
}

/// The place before a site's block.
fn input_of<'m>(model: &'m dyn BackboneConfig, site: &Site) -> Result<&'m Site> {
    let found = model.sites().with_role(Role::BlockIn).find(|input| input.block == site.block && site.block.is_some());
    let none = || {
        let why = format!("`{}` is in no block of a decoder, whose input the generator reads", site.path);
        refuse("target_modules", &why)
    };
    found.ok_or_else(none)
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let default = |site: &Site| site.role == Role::Linear && site.part == Part::AttnOut;
        let selection = Selection { targets: &self.targets, layers: Some(&self.layers), roles: ROLES, default };
        let (chosen, info) = (selection.sites(model)?, model.info());
        if !info.causal || info.reads.second.is_some() {
            let why = format!("{} is no decoder on its own: its blocks do not read segments in order", info.class);
            return Err(refuse("method", &why));
        }
        if self.window as usize > info.max_positions {
            let why = format!("{} tokens are more than the model's {}", self.window, info.max_positions);
            return Err(refuse("window", &why));
        }
        let tensors = |site: &Site| Ok(self.tensors(site, input_of(model, site)?.dims.output));
        let mut plan = selection.plan_of(model, chosen, tensors)?;
        let mut inputs: Vec<SiteId> = Vec::new();
        for id in &plan.sites {
            let input = input_of(model, &model.sites()[*id])?.id;
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        plan.sites.extend(inputs);
        plan.sites.sort_unstable();
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn segments(&self) -> Option<Segments> {
        Some(Segments {
            window: self.window as usize,
            completion: self.wants(Goal::Completion),
            reconstruction: self.wants(Goal::Reconstruction),
        })
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts, None)
    }

    #[cfg(feature = "torch")]
    fn write(
        &self,
        parts: &super::Parts<'_>,
        base: &dyn pleach_nn::Backbone,
        context: &super::Context<'_>,
    ) -> Result<super::Written> {
        generate::written(self, parts, base, context)
    }
}
