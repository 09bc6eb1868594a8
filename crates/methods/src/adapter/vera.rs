//! VeRA: `y = W x + b + lambda_b * (B (lambda_d * (A drop(x))))`, with one frozen random pair `A` `[r, in]`, `B` `[out, r]`
//! for all modules and two trained vectors for each.
//!
//! The pair is as large as the largest module; others use its first columns and rows. PEFT draws it from PyTorch's
//! generator, seeded with `projection_prng_key`, and so do we, so that `save_projection: false` means the same tensors.
//! Sums and products are float32, the result is rounded to the base's precision.
//!
//! Kopiczko, Blankevoort, Asano, *VeRA: Vector-based Random Matrix Adaptation*, 2023.

use super::common::{LINEAR, Projection, linear_plan};
use super::prelude::*;

options! {
    /// Options of VeRA.
    pub struct Config {
        /// Rank of the shared pair.
        r: u32 = 256,
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// The shared tensors.
        #[serde(flatten)]
        projection: Projection = Projection::default(),
        /// Share of inputs that are dropped in training.
        vera_dropout: f64 = 0.0,
        /// First value of `lambda_d`.
        d_initial: f64 = 0.1,
        /// Whether weights are stored input first. Known from the model; the value is not used.
        fan_in_fan_out: bool = false,
        /// Begin with `lambda_b` at zero, which leaves the model unchanged; else with `lambda_b` at one and a drawn `lambda_d`.
        init_weights: bool = true,
        /// Which of the frozen model's biases are trained too: `none`, `all`, or `vera_only`, those of targets.
        bias: String = "none".to_owned(),
    }
}

const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "vera",
        title: "VeRA",
        summary: "Trains two vectors a module around one random low-rank pair that all modules share.",
        formula: "`y = W x + b + lambda_b * (B (lambda_d * (A x)))`; `A` and `B` are frozen and shared, `lambda_b` begins at zero.",
        paper: "Kopiczko, Blankevoort, Asano, VeRA: Vector-based Random Matrix Adaptation, 2023 (arXiv:2310.11454)",
        roles: LINEAR,
        peft_type: Some("VERA"),
        sample_job: sample_job!("vera", ", r: 128, target_modules: all-linear"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"vera_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "some_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"projection_prng_key": 0.5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"lora_alpha": 16}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        Bias::named(&self.bias, "vera_only")?;
        positive("r", self.r)?;
        share("vera_dropout", self.vera_dropout)
    }
}

impl Config {
    fn tensors(&self, site: &Site) -> [PlannedTensor; 2] {
        let (b, d) =
            if self.init_weights { (Init::Zeros, Init::Derived) } else { (Init::Ones, Init::Normal { std: 1.0 }) };
        [
            parameter(site, "vera_lambda_b", [site.dims.output], b),
            parameter(site, "vera_lambda_d", [self.r as usize], d),
        ]
    }
}

impl AdapterConfig for Config {
    peft_tuner!(without_exclude, initial);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan =
            linear_plan(&self.targets, &self.layers, Bias::named(&self.bias, "vera_only")?, model, |site| {
                Ok(self.tensors(site))
            })?;
        let r = self.r as usize;
        self.projection
            .plan(&mut plan, model, [(A, "vera_A"), (B, "vera_B")], |input, output| [vec![r, input], vec![output, r]]);
        Ok(plan)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use pleach_nn::{Backbone, SiteCx};
    use tch::{Kind, Tensor};

    use super::{A, B, Config};
    use crate::adapter::common::{Added, Addition, Dropout, at_sites, sizes};
    use crate::adapter::{AdapterConfig, Hooks, Parts};
    use crate::plan::PlannedTensor;

    struct Vera {
        a: Tensor,        // [r, in]
        b: Tensor,        // [out, r]
        lambda_d: Tensor, // [r]
        lambda_b: Tensor, // [out]
        dropout: Dropout,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let (a, b) = (parts.get(A)?, parts.get(B)?);
        at_sites(parts, |site| {
            Ok(Added::at(
                site,
                Vera {
                    a: a.narrow(1, 0, site.dims.input as i64),
                    b: b.narrow(0, 0, site.dims.output as i64),
                    lambda_d: parts.part(site.id, "vera_lambda_d")?.shallow_clone(),
                    lambda_b: parts.part(site.id, "vera_lambda_b")?.shallow_clone(),
                    dropout: Dropout::new(config.vera_dropout, parts.key, "vera_dropout", &site.path),
                },
            ))
        })
    }

    /// PEFT draws `A` and then `B` from one generator, Kaiming uniform with the gain of a rectifier.
    pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone, _: Key) -> Result<Tensor> {
        if tensor.part == "vera_lambda_d" {
            return Ok(Tensor::full(sizes(tensor), config.d_initial, (Kind::Float, base.device())));
        }
        let mut generator = config.projection.generator(&config.plan(base.config())?, A, &tensor.name);
        let bound = (6.0 / tensor.shape[1] as f64).sqrt() as f32;
        let values = generator.uniform(tensor.shape.iter().product(), -bound, bound);
        Ok(Tensor::from_slice(&values).reshape(sizes(tensor)).to_device(base.device()))
    }

    impl Addition for Vera {
        fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
            let low = self.dropout.apply(cx, x).linear(&self.a, None::<&Tensor>) * &self.lambda_d; // [.., r]
            low.linear(&self.b, None::<&Tensor>) * &self.lambda_b
        }

        fn delta(&self) -> Tensor {
            (self.lambda_b.unsqueeze(1) * &self.b).matmul(&(self.lambda_d.unsqueeze(1) * &self.a))
        }
    }
}
