//! Quantisation-aware training of adapters (Bi-AdaptFormer, Bi-LoRA): every weight matrix of the adapter has few codes,
//! in training already.
//!
//! The wrapped adapter runs with `W~ = sigma Q((W - mu) / (sigma + 1e-5)) + mu` in place of each of its matrices `W`,
//! which stay as float32 with the trainer (see [`crate::codes`]). Only `Q` is passed straight through. A matrix that would
//! begin at zero has no deviation: it begins at small normal values instead, so that the model is not quite unchanged.
//! Biases cannot be coded and are refused. With `bihead` the classification head is one matrix of 1 bit without a bias.
//! The file holds for each matrix its packed codes, mean and deviation; read, it is the adapter with the coded weights.
//!
//! Jie, Wang, Deng, *Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy*, 2023.

use pleach_base::{Result, code};
use pleach_nn::Role;

use super::coded::{Coded, Shapes, When};
use crate::adapter::AdapterConfig;
use crate::adapter::common::{options, refuse};
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status};
use crate::codes::{Codec, Measure, Per};

options! {
    /// Options of quantisation-aware training.
    pub struct Config {
        /// Bits a weight: 1, 2, 4, 8, or 32 for weights as they are.
        bit: u32 = 1,
        /// Inner width of the adapter, in place of its own option.
        dim: Option<u32> = None,
        /// Factor of the adapter's result, in place of its own option.
        scale: Option<f64> = None,
        /// Share that the adapter drops in training, in place of its own option.
        dropout: Option<f64> = None,
        /// Train the classification head as a matrix of 1 bit without a bias.
        bihead: bool = false,
        /// What the codes make smallest: the absolute error (`l1_gauss`) or the squared one (`mse_gauss`).
        codebook: Measure = Measure::L1Gauss,
        /// What has one mean and deviation: the matrix (`tensor`) or each `row`.
        per: Per = Per::Tensor,
        /// Standard deviation of what begins at zero otherwise.
        init_std: f64 = 1e-3,
        /// Of a file: the matrices that it holds as codes, in order.
        #[serde(skip_serializing_if = "Option::is_none")]
        coded: Option<Shapes> = None,
    }
}

impl Config {
    fn codec(&self) -> Codec {
        Codec { bit: self.bit, codebook: self.codebook, per: self.per }
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        let inner = if self.dim.is_some() || self.scale.is_some() || self.dropout.is_some() {
            let name = adapter.card().name;
            adapter.sized(self.dim, self.scale, self.dropout).ok_or_else(|| {
                let field = if self.dim.is_some() { "dim" } else if self.scale.is_some() { "scale" } else { "dropout" };
                refuse(field, &format!("`{name}` has sizes of its own: give them in its section"))
            })?
        } else {
            adapter
        };
        Ok(Box::new(Coded {
            card: Self::CARD,
            options: serde_json::to_value(self).unwrap_or_default(),
            codec: self.codec(),
            when: When::Always,
            bihead: self.bihead,
            init_std: self.init_std,
            read: self.coded.is_some(),
            inner: inner.into(),
        }))
    }
}

/// Widths that there are.
pub(super) fn check_bit(bit: u32) -> Result<()> {
    match bit {
        1 | 2 | 4 | 8 | 32 => Ok(()),
        other => Err(refuse("bit", &format!("{other} is not one of 1, 2, 4, 8 and 32"))),
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "adapter_qat",
        kind: MethodKind::Compress,
        title: "Binary adapters",
        summary: "Trains an adapter whose weights have 1 to 8 bits, and stores it so.",
        formula: "`W~ = sigma Q((W - mu) / sigma) + mu` for every matrix `W` of the adapter, `Q` the nearest of `2^bit` \
                  codes for normal numbers.",
        paper: "Jie et al., Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy, \
                2023 (arXiv:2307.16867)",
        status: Status::Experimental,
        roles: &[Role::Linear, Role::SublayerOut, Role::Head],
        identity_at_init: false,
        sample_job: concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n",
            "  data: {source: ./train.jsonl, task: causal_lm}\n",
            "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n",
            "  compress: {method: adapter_qat, bit: 1}\n",
            "  tasks:\n    - {name: answers, adapter: {method: lora, r: 32, target_modules: all-linear}}\n",
            "  checkpoint: {store: ./checkpoints}\n"
        ),
        invalid: &[
            Invalid { options: r#"{"bit": 3}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_std": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"codebook": "uniform"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"per": "column"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dim": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bihead": true}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bits": 1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        check_bit(self.bit)?;
        if !(self.init_std.is_finite() && self.init_std > 0.0) {
            return Err(refuse("init_std", "must be above 0: a matrix of zeros has no deviation to code it by"));
        }
        if self.dim == Some(0) {
            return Err(refuse("dim", "must be at least 1"));
        }
        if self.scale.is_some_and(|scale| !(scale.is_finite() && scale > 0.0)) {
            return Err(refuse("scale", "must be a positive number"));
        }
        crate::adapter::common::share("dropout", self.dropout.unwrap_or(0.0))
    }
}
