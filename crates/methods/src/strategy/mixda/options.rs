//! The options.

use std::collections::BTreeSet;

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::adapter::common::{options, refuse, share};
use crate::adapter::compose::Child;

options! {
    /// Options of MixDA.
    pub struct Config {
        /// 2: a gate over domain adapters and an adapter of the task. 1, which trains a domain adapter on rows of its domain
        /// and on general ones, is not in this build.
        stage: u8 = 2,
        /// Stage 2: the domain adapters, in the order of the gate's weights.
        load_adapters: Vec<Loaded> = Vec::new(),
        /// Stage 2: the gate.
        gate: GateOptions = GateOptions::default(),
        /// Stage 2: leave the gate out and put the only domain adapter in the place of the frozen map.
        disable_moe: bool = false,
    }
}

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
        if self.stage != 2 {
            return Err(refuse("stage", "must be 2: this build does not draw domain adapters to the frozen map")
                .hint("the adapter method `domain` trains one without general rows"));
        }
        self.gate.check()?;
        if self.gate.pool == Pool::Last {
            return Err(refuse("gate.pool", "the last token of a padded row is none of its own").hint("write `last_real`"));
        }
        self.check_adapters()
    }

    fn check_adapters(&self) -> Result<()> {
        if self.load_adapters.is_empty() {
            return Err(refuse("load_adapters", "there is none, and stage 2 mixes some")
                .hint("train a domain adapter first: the adapter method `domain`"));
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
