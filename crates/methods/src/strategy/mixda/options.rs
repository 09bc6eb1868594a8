//! The options.

use std::collections::BTreeSet;

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::adapter::common::{options, positive_number, refuse, share};
use crate::adapter::compose::Child;

options! {
    /// Options of MixDA.
    pub struct Config {
        /// 1: a domain adapter, the task's `adapter`, is trained on texts of its domain, the job's data, and on general ones.
        /// 2: a gate over domain adapters and an adapter of the task.
        stage: u8 = 2,
        /// Stage 1: general texts, as many in every step as of the domain: a file, folder or glob like `spec.data.source`,
        /// whose rows are read as those.
        general_data: Option<String> = None,
        /// Stage 1: train without general texts; what the model knew of them is then not kept.
        no_old_knowledge: bool = false,
        /// Stage 1: weight of the loss on the domain's texts, `L_K`, beside that on general ones, `L_S`, whose weight is 1.
        knowledge_loss_factor: f64 = 0.5,
        /// Stage 1, masked_lm: share of the tokens that are predicted.
        mlm_probability: f64 = 0.15,
        /// Stage 1, masked_lm: shares of those that become the mask, stay as they are, and become a drawn token.
        mlm_mix: [f64; 3] = [0.85, 0.10, 0.05],
        /// Stage 2: the domain adapters, in the order of the gate's weights.
        load_adapters: Vec<Loaded> = Vec::new(),
        /// Stage 2: the gate.
        gate: GateOptions = GateOptions::default(),
        /// Stage 2: leave the gate out and put the only domain adapter in the place of the frozen map.
        disable_moe: bool = false,
    }
}

/// The options of stage 1 alone.
pub(super) const OF_FIRST: [&str; 5] =
    ["general_data", "no_old_knowledge", "knowledge_loss_factor", "mlm_probability", "mlm_mix"];

/// A domain adapter that was trained before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loaded {
    /// Its name among the others.
    pub id: String,
    /// The local folder that it lies in. Every worker reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Its `layers`.
    #[serde(default = "layers")]
    pub layers: Vec<u32>,
    /// Its `adapter_down_scale`.
    #[serde(default = "scale")]
    pub adapter_down_scale: u32,
}

fn layers() -> Vec<u32> {
    vec![7, 11]
}

fn scale() -> u32 {
    16
}

/// How the gate's results become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Each between 0 and 1.
    Sigmoid,
    /// All together 1.
    Softmax,
}

/// What the gate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// What the feed-forward part reads: the result of attention.
    AttentionOutput,
    /// The hidden state of the feed-forward part.
    FfnHidden,
}

/// Of which token the gate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Of each: one set of weights a token.
    None,
    /// Of a sequence's first.
    First,
    /// Of the last one, padding or not: refused, since results would depend on the company of a row.
    Last,
    /// Of a sequence's last real one.
    LastReal,
    /// The mean over a sequence's real tokens.
    Mean,
}

/// Options of the gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GateOptions {
    /// How results become weights: `sigmoid` or `softmax`.
    pub activation: Activation,
    /// What it reads: `attention_output` or `ffn_hidden`.
    pub input: Query,
    /// Of which token: `none` (of each), `first`, `last_real`, or the `mean`.
    pub pool: Pool,
    /// Width of its hidden layers.
    pub hidden: u32,
    /// Number of its hidden layers.
    pub layers: u32,
    /// Share of each map's input that is dropped in training.
    pub dropout: f64,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self {
            activation: Activation::Sigmoid,
            input: Query::AttentionOutput,
            pool: Pool::None,
            hidden: 64,
            layers: 1,
            dropout: 0.0,
        }
    }
}

impl GateOptions {
    /// Refuses sizes that cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        if self.hidden == 0 && self.layers > 0 {
            return Err(refuse("gate.hidden", "must be at least 1"));
        }
        share("gate.dropout", self.dropout)
    }
}

impl Config {
    /// Refuses what could not be trained.
    pub(super) fn check(&self) -> Result<()> {
        self.gate.check()?;
        match self.stage {
            1 => self.check_first(),
            2 => self.check_second(),
            other => Err(refuse("stage", &format!("{other} is neither 1 nor 2"))),
        }
    }

    fn check_first(&self) -> Result<()> {
        match (&self.general_data, self.no_old_knowledge) {
            (None, false) => {
                return Err(refuse(
                    "general_data",
                    "is missing, and stage 1 keeps what the model knows by general texts",
                )
                .hint("name some, or set `no_old_knowledge: true`"));
            }
            (Some(_), true) => return Err(refuse("no_old_knowledge", "leaves `general_data` without a use")),
            _ => {}
        }
        if !self.load_adapters.is_empty() {
            return Err(refuse("load_adapters", "stage 1 mixes none").hint("they belong to `stage: 2`"));
        }
        positive_number("knowledge_loss_factor", self.knowledge_loss_factor)?;
        if !(self.mlm_probability > 0.0 && self.mlm_probability <= 1.0) {
            return Err(refuse("mlm_probability", "must be above 0 and at most 1"));
        }
        let shares = self.mlm_mix.iter().all(|share| (0.0..=1.0).contains(share));
        if shares && (self.mlm_mix.iter().sum::<f64>() - 1.0).abs() < 1e-6 {
            return Ok(());
        }
        Err(refuse("mlm_mix", "must be three shares that add up to 1: mask, unchanged, drawn"))
    }

    fn check_second(&self) -> Result<()> {
        let first = [("general_data", self.general_data.is_some()), ("no_old_knowledge", self.no_old_knowledge)];
        if let Some((option, _)) = first.into_iter().find(|(_, given)| *given) {
            return Err(refuse(option, "is of stage 1").hint("write `stage: 1`"));
        }
        if self.gate.pool == Pool::Last {
            return Err(
                refuse("gate.pool", "the last token of a padded row is none of its own").hint("write `last_real`")
            );
        }
        self.check_adapters()
    }

    fn check_adapters(&self) -> Result<()> {
        if self.load_adapters.is_empty() {
            return Err(refuse("load_adapters", "there is none, and stage 2 mixes some")
                .hint("train a domain adapter first: `stage: 1`"));
        }
        let mut seen = BTreeSet::new();
        for (index, Loaded { id, .. }) in self.load_adapters.iter().enumerate() {
            let field = format!("load_adapters[{index}].id");
            if id == super::mixture::GATE {
                return Err(refuse(&field, &format!("`{id}` is the name of the gate")));
            }
            if !seen.insert(id) {
                return Err(refuse(&field, &format!("`{id}` is taken")));
            }
        }
        if self.disable_moe && self.load_adapters.len() > 1 {
            return Err(refuse("disable_moe", "without a gate there is place for one domain adapter"));
        }
        crate::adapter::compose::validate(&self.children())
    }

    /// The domain adapters as parts of a composition.
    pub(super) fn children(&self) -> Vec<Child> {
        let child = |Loaded { id, init_from, layers, adapter_down_scale }: &Loaded| {
            let fields = [("layers", json!(layers)), ("adapter_down_scale", json!(adapter_down_scale))];
            let options: Map<_, _> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            Child::frozen(id, super::mixture::DOMAIN, init_from.clone(), options)
        };
        self.load_adapters.iter().map(child).collect()
    }
}
