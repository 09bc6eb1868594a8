//! Options of PILL, and what they come to: kinds of tokens, stages.

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;

/// A kind of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Modality {
    /// Its name: with an expert, gated and with as many tokens as `visual.tokens` unless it is the first, which is text.
    Name(String),
    /// In full.
    Full(FullModality),
}

/// A kind of tokens in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FullModality {
    /// Its name.
    pub name: String,
    /// Whether its tokens go through an expert of their own; text alone may do without.
    #[serde(default = "yes")]
    pub expert: bool,
    /// Whether its values in attention are gated: all but text, when left out.
    #[serde(default)]
    pub gated: Option<bool>,
    /// Tokens of one item, such as an image; `visual.tokens` when left out, any number for text.
    #[serde(default)]
    pub tokens: Option<u32>,
}

fn yes() -> bool {
    true
}

/// The gate of values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// What has a gate of its own: every `head` of values.
    pub per: Per,
    /// What bounds it.
    pub activation: Bound,
    /// What its weights begin at.
    pub init: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { per: Per::Head, activation: Bound::Tanh, init: 0.0 }
    }
}

/// What has a gate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Every head.
    Head,
}

/// What bounds a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The hyperbolic tangent.
    Tanh,
}

/// Features that come with tokens of other kinds than text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Visual {
    /// Their width.
    pub proj_in: u32,
    /// Tokens of one item.
    pub tokens: u32,
}

impl Default for Visual {
    fn default() -> Self {
        Self { proj_in: 768, tokens: 32 }
    }
}

/// The adapters' own form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Gated: `U (silu(Dg x) * (D x))`.
    Silu,
    /// Plain: `U gelu(D x)`.
    Gelu,
}

/// One stage of the recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The projections and the experts of other kinds than text, without gates.
    Align,
    /// Everything, with gates.
    Tune,
}

/// The stage of a job, or both one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Stages {
    /// This one.
    One(Stage),
    /// These: `[align, tune]`.
    Several(Vec<Stage>),
}

/// A kind of tokens with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// Whether it has an expert.
    pub expert: bool,
    /// Whether its values are gated.
    pub gated: bool,
    /// Tokens of one item; 0 where any number will do.
    pub tokens: usize,
}

/// How many kinds there may be.
pub(super) const MOST: usize = 8;

/// The kinds in order.
///
/// # Errors
/// `METHOD_CONFIG` for a list that is none, or a kind that cannot be.
pub(super) fn kinds(list: &[Modality], visual: Visual) -> Result<Vec<Kind>> {
    let wrong = |why: &str| Err(refuse("modalities", why));
    if !(2..=MOST).contains(&list.len()) {
        return wrong(&format!("name text and at least one other kind, at most {MOST} in all"));
    }
    let mut kinds: Vec<Kind> = Vec::new();
    for (index, modality) in list.iter().enumerate() {
        let text = index == 0;
        let usual = if text { 0 } else { visual.tokens };
        let kind = match modality {
            Modality::Name(name) => {
                Kind { name: name.clone(), expert: true, gated: !text, tokens: usual as usize }
            }
            Modality::Full(full) => Kind {
                name: full.name.clone(),
                expert: full.expert,
                gated: full.gated.unwrap_or(!text),
                tokens: full.tokens.unwrap_or(usual) as usize,
            },
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if kind.name.is_empty() || !kind.name.chars().all(plain) {
            return wrong(&format!("`{}` is no name of small letters, digits and `_`", kind.name));
        }
        if kinds.iter().any(|other| other.name == kind.name) {
            return wrong(&format!("`{}` is there twice", kind.name));
        }
        if text && kind.gated {
            return wrong("values of text, the first kind, are never gated");
        }
        if !text && !kind.expert {
            return wrong(&format!("`{}` has no expert", kind.name));
        }
        if !text && kind.tokens == 0 {
            return wrong(&format!("an item of `{}` has no token", kind.name));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}
