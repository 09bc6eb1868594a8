//! The options of one of LAE's modules, under the names of its paper's code.

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;

/// Which module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// A bottleneck beside attention.
    #[default]
    Adapter,
    /// Low-rank additions to keys and values.
    LoRA,
    /// Keys and values in front.
    Prefix,
}

/// Where the adapter stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `attn(A(u) + u)`.
    Before,
    /// `A(attn(u)) + u`.
    After,
    /// `attn(u) + A(u)`.
    #[default]
    Parallel,
}

/// A width, or a share of the model's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Size {
    /// So many.
    Count(u32),
    /// This share, rounded down.
    Share(f64),
}

/// Options of a module; those that it does not have are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kwargs {
    /// Adapter: its inner width, or the share of the model's; 5 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_sample: Option<Size>,
    /// Adapter: where it stands; `parallel` when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// LoRA: its rank; 5 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Prefix: keys and values a block; 10 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// Prefix: whether it is compensated; it is when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compensatory: Option<bool>,
    /// A fixed scale in place of the trained ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
}

impl Kwargs {
    /// # Errors
    /// `METHOD_CONFIG` for an option of another module, and for sizes of nothing.
    pub(crate) fn check(&self, kind: Kind) -> Result<()> {
        let (adapter, lora, prefix) = (Kind::Adapter, Kind::LoRA, Kind::Prefix);
        for (name, given, of) in [
            ("down_sample", self.down_sample.is_some(), adapter),
            ("mode", self.mode.is_some(), adapter),
            ("rank", self.rank.is_some(), lora),
            ("length", self.length.is_some(), prefix),
            ("compensatory", self.compensatory.is_some(), prefix),
        ] {
            if given && of != kind {
                return Err(refuse(&format!("pet_kwargs.{name}"), &format!("is not an option of {kind:?}")));
            }
        }
        for (name, size) in [("rank", self.rank), ("length", self.length)] {
            if size == Some(0) {
                return Err(refuse(&format!("pet_kwargs.{name}"), "must be at least 1"));
            }
        }
        let usable = match self.down_sample {
            None => true,
            Some(Size::Count(count)) => count > 0,
            Some(Size::Share(share)) => share > 0.0 && share.is_finite(),
        };
        if !usable {
            return Err(refuse("pet_kwargs.down_sample", "leaves nothing"));
        }
        match self.scale {
            Some(scale) if !scale.is_finite() || scale == 0.0 => {
                Err(refuse("pet_kwargs.scale", "must be a number other than 0"))
            }
            _ => Ok(()),
        }
    }

    /// The adapter's inner width.
    pub(super) fn inner(&self, width: usize) -> usize {
        match self.down_sample {
            None => 5,
            Some(Size::Count(count)) => count as usize,
            Some(Size::Share(share)) => ((width as f64 * share).floor() as usize).max(1),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank.unwrap_or(5) as usize
    }

    pub(super) fn length(&self) -> usize {
        self.length.unwrap_or(10) as usize
    }
}
