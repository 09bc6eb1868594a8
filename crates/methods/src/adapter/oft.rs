//! OFT: the inputs of linear maps are turned block by block, `y = W (x Q) + b`, with `Q` the block diagonal of rotations
//! `Q_i` `[k, k]` that are made of skew matrices `S_i`: trained are the `k (k - 1) / 2` numbers above the diagonal.
//!
//! With `use_cayley_neumann` the rotation is cut short, `I + 2 S + 2 S^2 + .. + S^(n - 1)` with `n` terms; otherwise it
//! is Cayley's, `(I - S) (I + S)^-1`. With `coft` every `S_i` is kept within `eps / sqrt(blocks)` of zero: after each step
//! but the last, so that all ranks have the same, and as in PEFT by every training pass, which then finds nothing to do.
//!
//! Qiu et al., *Controlling Text-to-Image Diffusion by Orthogonal Finetuning*, 2023.

use super::common::{LINEAR, linear_plan, plain_linear, positive_number};
use super::prelude::*;

/// Options of OFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Blocks at a site; 0 to give `oft_block_size` instead. A number that does not divide the inputs gives way to the
    /// nearest that does.
    pub r: u32,
    /// Width of a block; 0 to give `r` instead. As with `r`, the nearest that divides the inputs.
    pub oft_block_size: u32,
    /// Share of blocks that are left as they are in a training step.
    pub module_dropout: f64,
    /// Modules.
    #[serde(flatten)]
    pub targets: Targets,
    /// Blocks of the model.
    #[serde(flatten)]
    pub layers: Layers,
    /// Whether weights are stored input first. Known from the model; the value is not used.
    pub fan_in_fan_out: bool,
    /// Which of the frozen model's biases are trained too: `none`, `all`, or `oft_only`, those of targets.
    pub bias: String,
    /// Begin at no rotation; with normal numbers otherwise.
    pub init_weights: bool,
    /// Keep the rotations small.
    pub coft: bool,
    /// How small.
    pub eps: f64,
    /// One block for all.
    pub block_share: bool,
    /// Cut the rotation's series short, which needs no inverse.
    pub use_cayley_neumann: bool,
    /// Terms of that series.
    pub num_cayley_neumann_terms: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            module_dropout: 0.0,
            targets: Targets::default(),
            layers: Layers::default(),
            fan_in_fan_out: false,
            bias: "none".to_owned(),
            init_weights: true,
            coft: false,
            eps: 6e-5,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
        }
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "oft",
        title: "OFT",
        summary: "Turns the inputs of linear maps by trained rotations of blocks.",
        formula: "`y = W (x Q) + b`; `Q` is block diagonal and orthogonal, each block made of a skew matrix.",
        paper: "Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, 2023 (arXiv:2306.07280)",
        roles: LINEAR,
        peft_type: Some("OFT"),
        sample_job: sample_job!("oft", ", oft_block_size: 16, target_modules: all-linear"),
        invalid: &[
            Invalid { options: r#"{"r": 4}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"r": 0, "oft_block_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"module_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"eps": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "lora_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_cayley_neumann_terms": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"oft_block_size": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"layers_pattern": "layers"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"block_size": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        if (self.r == 0) == (self.oft_block_size == 0) {
            return Err(refuse("r", "exactly one of `r` and `oft_block_size` must be given, the other be 0"));
        }
        share("module_dropout", self.module_dropout)?;
        positive_number("eps", self.eps)?;
        positive("num_cayley_neumann_terms", self.num_cayley_neumann_terms)
    }
}

/// The nearest to `wanted` that divides `inputs`; the smaller of two.
fn nearest_divisor(inputs: usize, wanted: usize) -> usize {
    let divides = |n: &usize| inputs.is_multiple_of(*n);
    if wanted >= inputs {
        return inputs;
    }
    let above = (wanted..=inputs).find(divides).unwrap_or(inputs);
    let below = (1..=wanted).rev().find(divides).unwrap_or(1);
    if wanted - below <= above - wanted { below } else { above }
}

impl Config {
    /// Blocks at a site and their width.
    fn blocks(&self, site: &Site) -> (usize, usize) {
        let inputs = site.dims.input;
        if self.r == 0 {
            let width = nearest_divisor(inputs, self.oft_block_size as usize);
            return (inputs / width, width);
        }
        let blocks = nearest_divisor(inputs, self.r as usize);
        (blocks, inputs / blocks)
    }

    fn tensor(&self, site: &Site) -> Result<[PlannedTensor; 1]> {
        plain_linear(site, Self::CARD.title)?;
        let (blocks, width) = self.blocks(site);
        if width < 2 {
            let field = if self.r == 0 { "oft_block_size" } else { "r" };
            return Err(refuse(field, &format!("leaves blocks of width 1 at `{}`, which cannot turn", site.path)));
        }
        let own = if self.block_share { 1 } else { blocks };
        let init = if self.init_weights { Init::Zeros } else { Init::Normal { std: 0.1 } };
        Ok([parameter(site, PART, [own, width * (width - 1) / 2], init)])
    }
}

const PART: &str = "oft_R.weight";

impl AdapterConfig for Config {
    peft_tuner!(peft_config);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let bias = Bias::named(&self.bias, "oft_only")?;
        linear_plan(&self.targets, &self.layers, bias, model, |site| self.tensor(site))
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &super::Parts<'_>, step: super::StepInfo) -> Result<()> {
        if self.coft && step.step < step.total { run::contract(self, parts) } else { Ok(()) }
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use tch::{Kind, Tensor};

    use super::{Config, PART};
    use crate::adapter::common::at_sites;
    use crate::adapter::rotation::{Rotation, Turned, cayley, dropped, turn_blocks};
    use crate::adapter::{Hooks, Parts};

    struct Oft {
        /// `[blocks or 1, k (k - 1) / 2]`
        weight: Tensor,
        /// Where those stand in a flat matrix `[k * k]`.
        upper: Tensor,
        blocks: i64,
        width: i64,
        /// Terms of the series; `None` for the exact rotation.
        terms: Option<u32>,
        /// Largest norm of a skew matrix.
        most: Option<f64>,
        dropout: f64,
        key: Key,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        if config.coft {
            let _no_grad = tch::no_grad_guard();
            contract(config, parts)?;
        }
        at_sites(parts, |site| {
            let weight = parts.part(site.id, PART)?.shallow_clone();
            let (blocks, width) = config.blocks(site);
            let upper: Vec<i64> =
                (0..width).flat_map(|i| (i + 1..width).map(move |j| (i * width + j) as i64)).collect();
            Ok(Turned(Oft {
                upper: Tensor::from_slice(&upper).to_device(weight.device()),
                most: config.coft.then(|| most(config, &weight)),
                weight,
                blocks: blocks as i64,
                width: width as i64,
                terms: config.use_cayley_neumann.then_some(config.num_cayley_neumann_terms),
                dropout: config.module_dropout,
                key: parts.key.named("module_dropout").named(&site.path),
            }))
        })
    }

    fn most(config: &Config, weight: &Tensor) -> f64 {
        config.eps / (weight.size()[0] as f64).sqrt()
    }

    /// Pulls the skew matrices of all sites back to the norm that they may have, in place.
    pub(super) fn contract(config: &Config, parts: &Parts<'_>) -> Result<()> {
        for id in &parts.plan.sites {
            let weight = parts.part(*id, PART)?;
            weight.detach().copy_(&contracted(weight, most(config, weight)));
        }
        Ok(())
    }

    /// Rows scaled down to the norm `most` of their skew matrices. With some room, so that doing it twice changes
    /// nothing.
    fn contracted(weight: &Tensor, most: f64) -> Tensor {
        let weight = weight.detach();
        let norm = (weight.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float) * 2.0).sqrt(); // [blocks, 1]
        let small = norm.le(most * (1.0 + 1e-5));
        weight.where_self(&small, &(&weight / &norm * most))
    }

    impl Oft {
        /// `[blocks or 1, k, k]`
        fn rotations(&self) -> Tensor {
            let weight = match self.most {
                // The value within bounds, the gradient that of the parameter.
                Some(most) => &self.weight + (contracted(&self.weight, most) - self.weight.detach()),
                None => self.weight.shallow_clone(),
            };
            let own = weight.size()[0];
            let flat = Tensor::zeros([own, self.width * self.width], (Kind::Float, weight.device()));
            let upper = flat.index_copy(1, &self.upper, &weight).reshape([own, self.width, self.width]);
            let skew = &upper - upper.transpose(1, 2);
            match self.terms {
                Some(terms) => series(&skew, terms),
                None => cayley(&skew),
            }
        }
    }

    /// `I + 2 S + 2 S^2 + .. + S^(terms - 1)`: the last term once.
    fn series(skew: &Tensor, terms: u32) -> Tensor {
        let one = Tensor::eye(skew.size()[1], (Kind::Float, skew.device()));
        let mut sum = one.unsqueeze(0).repeat([skew.size()[0], 1, 1]);
        if terms > 1 {
            sum += skew * 2.0;
        }
        if terms > 2 {
            let mut power = skew.bmm(skew);
            sum += &power * 2.0;
            for _ in 3..terms - 1 {
                power = power.bmm(skew);
                sum += &power * 2.0;
            }
            sum += power.bmm(skew);
        }
        sum
    }

    impl Rotation for Oft {
        fn turn(&self, x: &Tensor, noise: Option<Key>) -> Tensor {
            if let (Some(_), Some(most)) = (noise, self.most) {
                let _no_grad = tch::no_grad_guard();
                self.weight.detach().copy_(&contracted(&self.weight, most));
            }
            let mut matrices = self.rotations();
            if let (Some(key), true) = (noise, self.dropout > 0.0) {
                matrices = dropped(matrices, self.dropout, key);
            }
            turn_blocks(x, &matrices.expand([self.blocks, -1, -1], false))
        }

        fn key(&self) -> Key {
            self.key
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_divide_give_way_to_the_nearest_that_do() {
        assert_eq!(nearest_divisor(64, 32), 32);
        assert_eq!(nearest_divisor(48, 32), 24, "8 below, 48 is 16 above");
        assert_eq!(nearest_divisor(56, 10), 8, "8 is 2 below, 14 is 4 above");
        assert_eq!(nearest_divisor(56, 13), 14);
        assert_eq!(nearest_divisor(16, 32), 16);
    }
}
