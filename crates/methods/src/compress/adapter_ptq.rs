//! Quantisation of adapters after training: an adapter is trained in float32, and evaluated and stored with few codes.
//!
//! The codes are those of `adapter_qat`. Only matrices are coded; biases and a classification head stay as they are.
//!
//! Jie, Wang, Deng, *Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy*, 2023.

use pleach_base::{Result, code};
use pleach_nn::Role;

use super::adapter_qat::check_bit;
use super::coded::{Coded, Shapes, When};
use crate::adapter::AdapterConfig;
use crate::adapter::common::options;
use crate::around::{Around, AroundOptions};
use crate::card::{Card, Invalid, MethodKind, Status};
use crate::codes::{Codec, Measure, Per};

options! {
    /// Options of quantisation after training.
    pub struct Config {
        /// Bits a weight: 1, 2, 4, 8, or 32 for weights as they are.
        bit: u32 = 8,
        /// What the codes make smallest: the absolute error (`l1_gauss`) or the squared one (`mse_gauss`).
        codebook: Measure = Measure::L1Gauss,
        /// What has one mean and deviation: the matrix (`tensor`) or each `row`.
        per: Per = Per::Tensor,
        /// Of a file: the matrices that it holds as codes, in order.
        #[serde(skip_serializing_if = "Option::is_none")]
        coded: Option<Shapes> = None,
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Coded {
            card: Self::CARD,
            options: serde_json::to_value(self).unwrap_or_default(),
            codec: Codec { bit: self.bit, codebook: self.codebook, per: self.per },
            when: When::Afterwards,
            bihead: false,
            init_std: 0.0,
            read: self.coded.is_some(),
            inner: adapter.into(),
        }))
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &Card {
        name: "adapter_ptq",
        kind: MethodKind::Compress,
        title: "Quantised adapters",
        summary: "Trains an adapter in float32; evaluates and stores it with 1 to 8 bits a weight.",
        formula: "`W~ = sigma Q((W - mu) / sigma) + mu` for every matrix `W` of the adapter, outside of training.",
        paper: "Jie et al., Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy, \
                2023 (arXiv:2307.16867)",
        status: Status::Experimental,
        roles: &[Role::Linear, Role::SublayerOut, Role::Head],
        sample_job: concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n",
            "  data: {source: ./train.jsonl, task: causal_lm}\n",
            "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n",
            "  compress: {method: adapter_ptq, bit: 4}\n",
            "  tasks:\n    - {name: answers, adapter: {method: lora, r: 32, target_modules: all-linear}}\n",
            "  checkpoint: {store: ./checkpoints}\n"
        ),
        invalid: &[
            Invalid { options: r#"{"bit": 16}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"codebook": "uniform"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_std": 0.1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        check_bit(self.bit)
    }
}
