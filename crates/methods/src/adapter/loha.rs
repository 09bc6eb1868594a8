//! LoHa: `y = W x + b + s ((A1 B1) * (A2 B2)) x`, the elementwise product of two low-rank products, with `A` `[out, r]`,
//! `B` `[r, in]` and `s = alpha / r`.
//!
//! Attaches to linear sites that are stored output first, as PEFT's does, and to convolutions, whose weight is taken for a
//! matrix of its windows, or with `use_effective_conv2d` gets a core `[r, r, window]` between the factors. The product is float32, the result is rounded
//! to the base's precision. See [`super::common::Lycoris`] for what it shares with LoKr.
//!
//! Hyeon-Woo, Ye-Bin, Oh, *FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning*, 2021.

use super::common::{LINEAR_AND_CONV, Lycoris, core, plain_linear, plan_at, usual_init, window};
use super::prelude::*;

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

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "loha",
        title: "LoHa",
        summary: "Adds the elementwise product of two low-rank products to linear maps.",
        formula: "`y = W x + b + (alpha / r) ((A1 B1) * (A2 B2)) x`; `B2` begins at zero.",
        paper: "Hyeon-Woo, Ye-Bin, Oh, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, \
                2021 (arXiv:2108.06098)",
        roles: LINEAR_AND_CONV,
        sync: &[Sync::MeanGrads, Sync::SharedSeed],
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
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        self.product.validate()
    }
}

impl Config {
    fn tensors(&self, site: &Site) -> Result<Vec<PlannedTensor>> {
        plain_linear(site, Self::CARD.title)?;
        let (r, dims) = (self.product.rank(&site.path)?, site.dims);
        let last = |inputs| if self.init_weights { Init::Zeros } else { usual_init(inputs) };
        let window = window(site);
        let places: usize = window.iter().product();
        if !self.product.has_core(window) {
            let input = dims.input * places;
            return Ok(vec![
                parameter(site, "hada_w1_a", [dims.output, r], usual_init(r)),
                parameter(site, "hada_w1_b", [r, input], usual_init(input)),
                parameter(site, "hada_w2_a", [dims.output, r], usual_init(r)),
                parameter(site, "hada_w2_b", [r, input], last(input)),
            ]);
        }
        let core = core(r, window);
        Ok(vec![
            parameter(site, "hada_t1", core, usual_init(r * places)),
            parameter(site, "hada_w1_a", [r, dims.output], usual_init(dims.output)),
            parameter(site, "hada_w1_b", [r, dims.input], usual_init(dims.input)),
            parameter(site, "hada_t2", core, usual_init(r * places)),
            parameter(site, "hada_w2_a", [r, dims.output], usual_init(dims.output)),
            parameter(site, "hada_w2_b", [r, dims.input], last(dims.input)),
        ])
    }
}

impl AdapterConfig for Config {
    peft_tuner!(peft_config);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        plan_at(LINEAR_AND_CONV, &self.targets, &self.layers, Bias::None, model, |site| self.tensors(site))
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use tch::Tensor;

    use super::Config;
    use crate::adapter::common::{Added, Dropped, Product, at_sites, inner, outer};
    use crate::adapter::{Hooks, Parts};

    /// A factor: `A`, `B`, and the core over the window of a convolution.
    struct Half(Tensor, Tensor, Option<Tensor>);

    struct Hada([Half; 2]);

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let half = |[a, b, core]: [&str; 3]| {
                let part = |part| parts.part(site.id, part).map(Tensor::shallow_clone);
                let core = parts.plan.part(site.id, core).map(|_| part(core)).transpose()?;
                Ok(Half(part(a)?, part(b)?, core))
            };
            let first = half(["hada_w1_a", "hada_w1_b", "hada_t1"])?;
            let hada = Hada([first, half(["hada_w2_a", "hada_w2_b", "hada_t2"])?]);
            Ok(Added::at(site, Dropped::new(hada, &config.product, true, parts.key, &site.path)?))
        })
    }

    impl Half {
        fn matrix(&self, other: &Self) -> Tensor {
            let Self(a, b, core) = self;
            let (Some(core), Some(other_core)) = (core, &other.2) else { return a.matmul(b) };
            // The backward pass that PEFT wrote by hand takes the other factor's inner part for the gradient of `a`. The
            // second term is zero and only carries that gradient, so that training is the same as there.
            let crossed = inner(other_core, &other.1).detach();
            outer(&inner(core, b), &a.detach()) + outer(&crossed, &(a - a.detach()))
        }
    }

    impl Product for Hada {
        fn product(&self) -> Tensor {
            let [first, second] = &self.0;
            first.matrix(second) * second.matrix(first)
        }
    }
}
