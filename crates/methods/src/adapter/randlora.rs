//! RandLoRA: `y = W x + b + s B diag(..) A drop(x)` of full rank, a sum of `n` low-rank products whose factors are frozen
//! and random, shared by all modules, and weighted by two trained tensors, `lambda` `[r, n]` and `gamma` `[n, min]`, with
//! `s = randlora_alpha / r`, `n` the least number of ranks `r` that make up the smaller width `min`.
//!
//! `A` is `[r, 1, min]` and `B` `[max, n, r]` for the largest module; others use their first entries. Products are of
//! `A` flattened with `r` outermost and `B` with `n` outermost, as in PEFT, whose files this reads. PEFT draws both from
//! PyTorch's generator, in bfloat16 unless they are sparse, and so do we. Products are float32, the result is rounded to
//! the base's precision.
//!
//! Albert et al., *RandLoRA: Full-rank Parameter-Efficient Fine-Tuning of Large Models*, 2025.

use pleach_nn::Dims;

use super::common::{LINEAR, Projection, linear_plan, positive_number};
use super::prelude::*;

options! {
    /// Options of RandLoRA.
    pub struct Config {
        /// Rank of each product. A larger one means fewer products and fewer parameters.
        r: u32 = 32,
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// The shared tensors.
        #[serde(flatten)]
        projection: Projection = Projection::default(),
        /// Factors of -1, 0 and 1, zero two times out of three.
        sparse: bool = false,
        /// The same with even more zeros: a share of one over the root of the smaller width is left.
        very_sparse: bool = false,
        /// Share of inputs that are dropped in training.
        randlora_dropout: f64 = 0.0,
        /// Whether weights are stored input first. Known from the model; the value is not used.
        fan_in_fan_out: bool = false,
        /// Numerator of the scaling.
        randlora_alpha: f64 = 640.0,
        /// Begin with `lambda` at zero, which leaves the model unchanged; drawn otherwise.
        init_weights: bool = true,
        /// Which of the frozen model's biases are trained too: `none`, `all`, or `randlora_only`, those of targets.
        bias: String = "none".to_owned(),
    }
}

const A: &str = "base_model.randlora_A";
const B: &str = "base_model.randlora_B";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "randlora",
        title: "RandLoRA",
        summary: "Adds a full-rank sum of random low-rank products with trained weights to linear maps.",
        formula: "`y = W x + b + (randlora_alpha / r) sum_n B_n diag(lambda_n) A diag(gamma_n) x`; `A` and `B` are frozen, \
                  random and shared, `lambda` begins at zero.",
        paper: "Albert et al., RandLoRA: Full-rank Parameter-Efficient Fine-Tuning of Large Models, 2025 (arXiv:2502.00987)",
        roles: LINEAR,
        peft_type: Some("RANDLORA"),
        sample_job: sample_job!("randlora", ", r: 16, randlora_alpha: 320"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"randlora_alpha": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"randlora_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "some_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"d_initial": 0.1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        Bias::named(&self.bias, "randlora_only")?;
        positive("r", self.r)?;
        positive_number("randlora_alpha", self.randlora_alpha)?;
        share("randlora_dropout", self.randlora_dropout)
    }
}

/// The smaller and the larger width.
fn widths(dims: Dims) -> (usize, usize) {
    (dims.input.min(dims.output), dims.input.max(dims.output))
}

impl Config {
    fn tensors(&self, site: &Site) -> [PlannedTensor; 2] {
        let (r, (least, _)) = (self.r as usize, widths(site.dims));
        let products = least.div_ceil(r);
        let lambda = if self.init_weights { Init::Zeros } else { Init::Normal { std: 1.0 } };
        [
            parameter(site, "randlora_lambda", [r, products], lambda),
            parameter(site, "randlora_gamma", [products, least], Init::Derived),
        ]
    }
}

impl AdapterConfig for Config {
    peft_tuner!(without_exclude, initial);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan =
            linear_plan(&self.targets, &self.layers, Bias::named(&self.bias, "randlora_only")?, model, |site| {
                Ok(self.tensors(site))
            })?;
        let r = self.r as usize;
        self.projection.plan(&mut plan, model, [(A, "randlora_A"), (B, "randlora_B")], |input, output| {
            let (least, most) = (input.min(output), input.max(output));
            [vec![r, 1, least], vec![most, least.div_ceil(r), r]]
        });
        Ok(plan)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use pleach_nn::{Backbone, SiteCx};
    use tch::{Kind, Tensor};

    use super::{A, B, Config, widths};
    use crate::adapter::common::{Added, Addition, Dropout, at_sites, sizes};
    use crate::adapter::{AdapterConfig, Hooks, Parts};
    use crate::mersenne::Mersenne;
    use crate::plan::PlannedTensor;

    struct RandLora {
        a: Tensor,      // [r, 1, least]
        b: Tensor,      // [most, n * r]
        lambda: Tensor, // [r, n]
        gamma: Tensor,  // [n, least]
        narrow_input: bool,
        scaling: f64,
        dropout: Dropout,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let shared = |name| Ok(parts.get(name)?.to_kind(Kind::Float));
        let (a, b): (Tensor, Tensor) = (shared(A)?, shared(B)?);
        at_sites(parts, |site| {
            let lambda = parts.part(site.id, "randlora_lambda")?.shallow_clone();
            let (least, most) = widths(site.dims);
            Ok(Added::at(
                site,
                RandLora {
                    a: a.narrow(2, 0, least as i64),
                    b: b.narrow(0, 0, most as i64).narrow(1, 0, lambda.size()[1]).flatten(1, 2),
                    lambda,
                    gamma: parts.part(site.id, "randlora_gamma")?.shallow_clone(),
                    narrow_input: site.dims.input == least,
                    scaling: config.randlora_alpha / f64::from(config.r),
                    dropout: Dropout::new(config.randlora_dropout, parts.key, "randlora_dropout", &site.path),
                },
            ))
        })
    }

    impl RandLora {
        /// `[inner, in]` and `[out, inner]`.
        fn factors(&self) -> (Tensor, Tensor) {
            let a = (self.lambda.unsqueeze(-1) * &self.a * self.gamma.unsqueeze(0)).flatten(0, 1); // [r * n, least]
            let b = self.b.shallow_clone();
            if self.narrow_input { (a, b) } else { (b.tr(), a.tr()) }
        }
    }

    impl Addition for RandLora {
        fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
            let (first, second) = self.factors();
            let inner = self.dropout.apply(cx, x).linear(&first, None::<&Tensor>);
            inner.linear(&second, None::<&Tensor>) * self.scaling
        }

        fn delta(&self) -> Tensor {
            let (first, second) = self.factors();
            second.matmul(&first) * self.scaling
        }
    }

    pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone, _: Key) -> Result<Tensor> {
        if tensor.part == "randlora_gamma" {
            let most = if config.init_weights {
                tensor.shape.iter().copied().max().unwrap_or(1)
            } else {
                widths(base.config().sites()[tensor.site].dims).1
            };
            return Ok(Tensor::full(sizes(tensor), 1.0 / most as f64, (Kind::Float, base.device())));
        }
        let plan = config.plan(base.config())?;
        let first = plan.named(A);
        let mut generator = config.projection.generator(&plan, A, &tensor.name);
        let least = first.and_then(|first| first.shape.last()).map_or(1.0, |least| *least as f64);
        let values = match (config.very_sparse, config.sparse) {
            (true, _) => sparse(&mut generator, tensor, least.sqrt()),
            (false, true) => sparse(&mut generator, tensor, 3.0),
            (false, false) => dense(&mut generator, tensor),
        };
        // As PEFT does, in the kind that they were drawn in: the deviation is rounded to it as well.
        let scaled = &values / values.std(true);
        Ok(scaled.to_kind(Kind::Float).to_device(base.device()))
    }

    /// Kaiming uniform in bfloat16; `B` is drawn a product at a time.
    fn dense(generator: &mut Mersenne, tensor: &PlannedTensor) -> Tensor {
        let (rows, products, inner) = (tensor.shape[0], tensor.shape[1], tensor.shape[2]);
        let bound = (1.0 / (inner as f64).sqrt()) as f32;
        let drawn = generator.uniform_bf16(rows * products * inner, -bound, bound);
        let by_product = Tensor::from_slice(&drawn).reshape([products as i64, rows as i64, inner as i64]);
        by_product.transpose(0, 1).contiguous().to_kind(Kind::BFloat16)
    }

    /// -1 and 1 with a chance of `1 / (2 sparsity)` each.
    fn sparse(generator: &mut Mersenne, tensor: &PlannedTensor, sparsity: f64) -> Tensor {
        let edge = 1.0 / (2.0 * sparsity);
        let sign = |draw: f32| match f64::from(draw) {
            low if low < edge => -1.0,
            high if high > 1.0 - edge => 1.0,
            _ => 0.0f32,
        };
        let drawn = generator.uniform(tensor.shape.iter().product(), 0.0, 1.0);
        Tensor::from_slice(&drawn.into_iter().map(sign).collect::<Vec<_>>()).reshape(sizes(tensor))
    }
}
