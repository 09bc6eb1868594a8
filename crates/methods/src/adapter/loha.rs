//! LoHa: `y = W x + b + s ((A1 B1) * (A2 B2)) x`, the elementwise product of two low-rank products, with `A` `[out, r]`,
//! `B` `[r, in]` and `s = alpha / r`.
//!
//! Attaches to linear sites that are stored output first, as PEFT's does. The product is float32, the result is rounded
//! to the base's precision. See [`super::common::Lycoris`] for what it shares with LoKr.
//!
//! Hyeon-Woo, Ye-Bin, Oh, *FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning*, 2021.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init, Site};

use super::common::{
    Bias, LINEAR, Layers, Lycoris, Targets, linear_plan, options, parameter, peft_tuner, plain_linear, sample_job,
    usual_init,
};
use super::{AdapterConfig, Options};
use crate::card::{Card, Invalid, MethodKind, Status, Sync};
use crate::plan::{Plan, PlannedTensor};

options! {
    /// Options of LoHa.
    pub struct Config {
        /// Ranks, scaling and dropout.
        #[serde(flatten)]
        product: Lycoris = Lycoris::default(),
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// Begin with the last factor at zero, which leaves the model unchanged; drawn like the others otherwise.
        init_weights: bool = true,
    }
}

static CARD: Card = Card {
    name: "loha",
    kind: MethodKind::Adapter,
    title: "LoHa",
    summary: "Adds the elementwise product of two low-rank products to linear maps.",
    formula: "`y = W x + b + (alpha / r) ((A1 B1) * (A2 B2)) x`; `B2` begins at zero.",
    paper: "Hyeon-Woo, Ye-Bin, Oh, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, \
            2021 (arXiv:2108.06098)",
    status: Status::Stable,
    roles: LINEAR,
    sync: &[Sync::MeanGrads, Sync::SharedSeed],
    mergeable: true,
    identity_at_init: true,
    peft_type: Some("LOHA"),
    sample_job: sample_job!("loha", ", r: 8, alpha: 16, target_modules: all-linear"),
    invalid: &[
        Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"rank_pattern": {"q_proj": 0}}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"alpha": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"rank_dropout": 1.0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"module_dropout": -0.5}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
        Invalid { options: r#"{"lora_alpha": 16}"#, code: code::UNKNOWN_KEY },
    ],
};

impl Options for Config {
    const CARD: &'static Card = &CARD;

    fn validate(&self) -> Result<()> {
        self.product.validate()
    }
}

impl Config {
    fn tensors(&self, site: &Site) -> Result<[PlannedTensor; 4]> {
        plain_linear(site, CARD.title)?;
        let (r, dims) = (self.product.rank(&site.path)?, site.dims);
        let last = if self.init_weights { Init::Zeros } else { usual_init(dims.input) };
        Ok([
            parameter(site, "hada_w1_a", [dims.output, r], usual_init(r)),
            parameter(site, "hada_w1_b", [r, dims.input], usual_init(dims.input)),
            parameter(site, "hada_w2_a", [dims.output, r], usual_init(r)),
            parameter(site, "hada_w2_b", [r, dims.input], last),
        ])
    }
}

impl AdapterConfig for Config {
    peft_tuner!(peft_config);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        linear_plan(&self.targets, &self.layers, Bias::None, model, |site| self.tensors(site))
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use tch::Tensor;

    use super::Config;
    use crate::adapter::common::{Added, Dropped, Product, at_sites};
    use crate::adapter::{Hooks, Parts};

    struct Hada([Tensor; 4]);

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let part = |part| Ok(parts.part(site.id, part)?.shallow_clone());
            let hada = Hada([part("hada_w1_a")?, part("hada_w1_b")?, part("hada_w2_a")?, part("hada_w2_b")?]);
            Ok(Added(Dropped::new(hada, &config.product, true, parts.key, &site.path)?))
        })
    }

    impl Product for Hada {
        fn product(&self) -> Tensor {
            let [a1, b1, a2, b2] = &self.0;
            a1.matmul(b1) * a2.matmul(b2)
        }
    }
}
