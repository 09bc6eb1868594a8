//! HRA: `y = W H x + b` with `H` a product of `r` Householder reflections `I - 2 u u^T / (u^T u)`, which keeps the frozen
//! weight's singular values.
//!
//! With an even `r` the vectors begin in equal pairs, whose reflections cancel. `apply_GS` makes the vectors orthogonal
//! first (Gram-Schmidt); equal pairs have no orthogonal ones, so they begin apart then, where PEFT divides by the length
//! of what rounding leaves. The reflections are applied to the input, in float32, and rounded to the base's precision.
//! Attaches to linear sites that are stored output first, as PEFT's does, and to convolutions over square windows, whose
//! weight is turned instead.
//!
//! Yuan, Liu, Xu, *Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation*,
//! 2024.

use super::common::{LINEAR_AND_CONV, plain_linear, plan_at, usual_init, window};
use super::prelude::*;

options! {
    /// Options of HRA.
    pub struct Config {
        /// Number of reflections. Odd numbers begin with a changed model.
        r: u32 = 8,
        /// Make the vectors of the reflections orthogonal first.
        #[serde(rename = "apply_GS")]
        apply_gs: bool = false,
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// Begin with vectors in equal pairs, which leaves the model unchanged; all drawn apart otherwise.
        init_weights: bool = true,
        /// Which of the frozen model's biases are trained too: `none`, `all`, or `hra_only`, those of targets.
        bias: String = "none".to_owned(),
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "hra",
        title: "HRA",
        summary: "Turns the input of linear maps by a chain of trained Householder reflections.",
        formula: "`y = W H_1 .. H_r x + b` with `H = I - 2 u u^T / (u^T u)`; the `u` begin in equal pairs.",
        paper: "Yuan, Liu, Xu, Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection \
                Adaptation, 2024 (arXiv:2405.17484)",
        roles: LINEAR_AND_CONV,
        peft_type: Some("HRA"),
        sample_job: sample_job!("hra", ", r: 8, target_modules: all-linear"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"apply_GS": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "some_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"apply_gs": true}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        Bias::named(&self.bias, "hra_only")?;
        positive("r", self.r)
    }
}

impl Config {
    fn tensor(&self, site: &Site) -> Result<PlannedTensor> {
        plain_linear(site, Self::CARD.title)?;
        let (r, window) = (self.r as usize, window(site));
        if !window.is_empty() && !matches!(window, [height, width] if height == width) {
            let why =
                format!("`{}` slides a window of {window:?}, and {} takes square ones", site.path, Self::CARD.title);
            return Err(refuse("target_modules", &why));
        }
        let input = site.dims.input * window.iter().product::<usize>();
        let in_pairs = self.init_weights && !self.apply_gs && r.is_multiple_of(2);
        let init = if in_pairs { Init::Derived } else { usual_init(r) };
        Ok(parameter(site, "hra_u", [input, r], init))
    }
}

impl AdapterConfig for Config {
    peft_tuner!(peft_config, initial);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        plan_at(LINEAR_AND_CONV, &self.targets, &self.layers, Bias::named(&self.bias, "hra_only")?, model, |site| {
            Ok([self.tensor(site)?])
        })
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::rng::Key;
    use pleach_base::{Result, code};
    use pleach_nn::{Backbone, BaseOp, OpWeights, Role, Site, SiteCx, SiteHook, draw};
    use tch::{Kind, Tensor};

    use super::Config;
    use crate::adapter::common::{at_sites, dense, usual_init, with_weight};
    use crate::adapter::{Hooks, Parts, SiteMethod};
    use crate::plan::PlannedTensor;

    /// Equal pairs.
    pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
        let half = config.r as usize / 2;
        let drawn = draw(usual_init(half), key, &[tensor.shape[0], half], base.device());
        let drawn = drawn.ok_or_else(|| code::INTERNAL.error("a uniform beginning is drawn"))?;
        Ok(drawn.repeat_interleave_self_int(2, 1, None))
    }

    struct Hra {
        u: Tensor, // [in, r]
        orthogonal: bool,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            Ok(Hra { u: parts.part(site.id, "hra_u")?.shallow_clone(), orthogonal: config.apply_gs })
        })
    }

    /// `v` `[in]` with length one.
    fn unit(v: &Tensor) -> Tensor {
        v / v.norm()
    }

    /// The part of `x` `[.., in]` along the unit vector `u` `[in]`.
    fn along(x: &Tensor, u: &Tensor) -> Tensor {
        x.matmul(u).unsqueeze(-1) * u
    }

    impl Hra {
        /// The unit vectors of the reflections, in order.
        fn vectors(&self) -> Vec<Tensor> {
            let mut units: Vec<Tensor> = Vec::new();
            for column in self.u.unbind(1) {
                let rest = if self.orthogonal {
                    units.iter().fold(column, |rest, known| &rest - along(&rest, known))
                } else {
                    column
                };
                units.push(unit(&rest));
            }
            units
        }

        /// The frozen weights with the reflections folded in; a convolution's weight is a matrix of its windows.
        fn turned(&self, site: &Site, base: &OpWeights) -> OpWeights {
            let frozen = dense(site, base);
            let matrix = frozen.flatten(1, -1);
            let weight = self.vectors().iter().fold(matrix, |weight, u| &weight - along(&weight, u) * 2.0);
            with_weight(site, base, &weight.reshape(frozen.size()))
        }
    }

    impl SiteHook for Hra {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, mut x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let kind = x[0].kind();
            if let (Role::Conv, Some(weights)) = (cx.site.role, base.weights()) {
                let wide = [x[0].to_kind(Kind::Float)];
                return base.run_with(&self.turned(cx.site, weights), &wide).iter().map(|y| y.to_kind(kind)).collect();
            }
            let turned = self.vectors().iter().rev().fold(x[0].to_kind(Kind::Float), |x, u| &x - along(&x, u) * 2.0);
            x[0] = turned.to_kind(kind);
            base.run(&x)
        }
    }

    impl SiteMethod for Hra {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            Some(self.turned(site, base))
        }
    }
}
