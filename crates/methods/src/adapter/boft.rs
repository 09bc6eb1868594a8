//! BOFT: the inputs of linear maps are turned by a product of block diagonal rotations between butterfly permutations,
//! `y = s * (W (x Q)) + b` with `Q = M_m .. M_1`, `M_i = P_i diag(R_i1, R_i2, ..) P_i^T`, and a trained scale `s` for each
//! output. Each `R` is Cayley's rotation of the skew part of a trained matrix.
//!
//! `m` is `boft_n_butterfly_factor`; 1 has no permutations. PEFT without its CUDA extension writes one factor whatever
//! the option says: in a file, the tensors count.
//!
//! Liu et al., *Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization*, 2023.

use std::collections::BTreeMap;

use super::common::{LINEAR, linear_plan, plain_linear};
use super::prelude::*;

/// Options of BOFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Width of a block, a divisor of the inputs of every target; 0 to give `boft_block_num` instead.
    pub boft_block_size: u32,
    /// Blocks at a site; 0 to give `boft_block_size` instead.
    pub boft_block_num: u32,
    /// Factors of the rotation.
    pub boft_n_butterfly_factor: u32,
    /// Modules.
    #[serde(flatten)]
    pub targets: Targets,
    /// Blocks of the model.
    #[serde(flatten)]
    pub layers: Layers,
    /// Share of the blocks of one factor that are left as they are in a training step.
    pub boft_dropout: f64,
    /// Whether weights are stored input first. Known from the model; the value is not used.
    pub fan_in_fan_out: bool,
    /// Which of the frozen model's biases are trained too: `none`, `all`, or `boft_only`, those of targets.
    pub bias: String,
    /// Begin at no rotation and scale 1; with normal numbers around those otherwise.
    pub init_weights: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            boft_block_size: 4,
            boft_block_num: 0,
            boft_n_butterfly_factor: 1,
            targets: Targets::default(),
            layers: Layers::default(),
            boft_dropout: 0.0,
            fan_in_fan_out: false,
            bias: "none".to_owned(),
            init_weights: true,
        }
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "boft",
        title: "BOFT",
        summary: "Turns the inputs of linear maps by trained butterflies of rotations, and scales the outputs.",
        formula: "`y = s * (W (x Q)) + b`; `Q` is a product of permuted block diagonals of rotations.",
        paper: "Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, 2023 (arXiv:2311.06243)",
        roles: LINEAR,
        peft_type: Some("BOFT"),
        sample_job: sample_job!(
            "boft",
            ", boft_block_size: 8, boft_n_butterfly_factor: 2, target_modules: [q_proj, v_proj]"
        ),
        invalid: &[
            Invalid { options: r#"{"boft_block_num": 4}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"boft_block_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"boft_block_size": 1000}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"boft_n_butterfly_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"boft_n_butterfly_factor": 30}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"boft_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"bias": "lora_only"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"block_size": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"boft_n_butterfly_factor": 2}"#;

    fn validate(&self) -> Result<()> {
        if (self.boft_block_size == 0) == (self.boft_block_num == 0) {
            let why = "exactly one of `boft_block_size` and `boft_block_num` must be given, the other be 0";
            return Err(refuse("boft_block_size", why));
        }
        positive("boft_n_butterfly_factor", self.boft_n_butterfly_factor)?;
        share("boft_dropout", self.boft_dropout)
    }
}

/// Rotations of a site.
#[derive(Clone, Copy)]
struct Shape {
    factors: usize,
    blocks: usize,
    width: usize,
}

impl Config {
    fn shape(&self, site: &Site) -> Result<Shape> {
        let inputs = site.dims.input;
        let (field, given) = match self.boft_block_size {
            0 => ("boft_block_num", self.boft_block_num as usize),
            size => ("boft_block_size", size as usize),
        };
        if !inputs.is_multiple_of(given) {
            return Err(refuse(field, &format!("{given} does not divide the {inputs} inputs of `{}`", site.path)));
        }
        let (blocks, width) = if self.boft_block_size == 0 { (given, inputs / given) } else { (inputs / given, given) };
        let factors = self.boft_n_butterfly_factor as usize;
        let spread = u32::try_from(factors - 1).ok().and_then(|power| 2usize.checked_pow(power));
        if !spread.is_some_and(|spread| blocks.is_multiple_of(spread)) || (factors > 1 && !width.is_multiple_of(2)) {
            let why = format!(
                "{factors} factors need an even block size and a number of blocks that 2 divides {} times; \
                 `{}` has {blocks} blocks of width {width}",
                factors - 1,
                site.path
            );
            return Err(refuse("boft_n_butterfly_factor", &why));
        }
        Ok(Shape { factors, blocks, width })
    }

    fn tensors(&self, site: &Site) -> Result<[PlannedTensor; 2]> {
        plain_linear(site, Self::CARD.title)?;
        let Shape { factors, blocks, width } = self.shape(site)?;
        let (rotation, scale) =
            if self.init_weights { (Init::Zeros, Init::Ones) } else { (Init::Normal { std: 0.1 }, Init::Derived) };
        Ok([
            parameter(site, ROTATION, [factors, blocks, width, width], rotation),
            parameter(site, SCALE, [site.dims.output, 1], scale),
        ])
    }
}

const ROTATION: &str = "boft_R";
const SCALE: &str = "boft_s";

/// Where the numbers of a factor come from: entry `i` of the permuted row is entry `order[i]` of the row.
#[cfg(any(test, feature = "torch"))]
fn butterfly(inputs: usize, shape: Shape, factor: usize) -> Vec<usize> {
    let half = shape.width / 2;
    if shape.factors == 1 {
        return (0..inputs).collect();
    }
    let group = inputs / (shape.blocks >> factor);
    let pieces = group / half;
    // Even pieces of half a block, then odd ones.
    let sorted = (0..pieces).step_by(2).chain((1..pieces).step_by(2));
    let within: Vec<usize> = sorted.flat_map(|piece| piece * half..(piece + 1) * half).collect();
    (0..inputs).step_by(group).flat_map(|start| within.iter().map(move |at| start + at)).collect()
}

impl AdapterConfig for Config {
    peft_tuner!(peft_config, initial);

    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let bias = Bias::named(&self.bias, "boft_only")?;
        let mut plan = linear_plan(&self.targets, &self.layers, bias, model, |site| self.tensors(site))?;
        if self.boft_n_butterfly_factor > 1 {
            plan.notes.push("PEFT opens more than one butterfly factor only with its CUDA extension".to_owned());
        }
        Ok(plan)
    }

    fn see_file(&mut self, shapes: &BTreeMap<String, Vec<usize>>) {
        let rotation = shapes.iter().find(|(name, _)| name.ends_with(ROTATION));
        if let Some(factors) = rotation.and_then(|(_, shape)| u32::try_from(*shape.first()?).ok()) {
            self.boft_n_butterfly_factor = factors.clamp(1, self.boft_n_butterfly_factor);
        }
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::rng::Key;
    use pleach_base::{Result, code};
    use pleach_nn::{Backbone, Init, draw};
    use tch::Tensor;

    use super::{Config, ROTATION, SCALE, butterfly};
    use crate::adapter::common::at_sites;
    use crate::adapter::rotation::{Rotation, Turned, cayley, dropped, turn_blocks};
    use crate::adapter::{Hooks, Parts};
    use crate::plan::PlannedTensor;

    /// Scales around one.
    pub(super) fn initial(_: &Config, tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
        let noise = draw(Init::Normal { std: 0.1 }, key, &tensor.shape, base.device());
        Ok(noise.ok_or_else(|| code::INTERNAL.error("normal numbers are drawn"))? + 1.0)
    }

    struct Boft {
        /// `[factors, blocks, k, k]`
        matrices: Tensor,
        /// `[out, 1]`
        scale: Tensor,
        /// Permutation of each factor and its inverse; none where there is one factor.
        orders: Vec<[Tensor; 2]>,
        dropout: f64,
        key: Key,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let (matrices, scale) = (parts.part(site.id, ROTATION)?, parts.part(site.id, SCALE)?);
            let shape = config.shape(site)?;
            let order = |factor| {
                let order = butterfly(site.dims.input, shape, factor);
                let mut back = vec![0i64; order.len()];
                order.iter().enumerate().for_each(|(at, from)| back[*from] = at as i64);
                let order: Vec<i64> = order.iter().map(|from| *from as i64).collect();
                [order, back].map(|list| Tensor::from_slice(&list).to_device(matrices.device()))
            };
            let orders = if shape.factors == 1 { Vec::new() } else { (0..shape.factors).map(order).collect() };
            Ok(Turned(Boft {
                matrices: matrices.shallow_clone(),
                scale: scale.shallow_clone(),
                orders,
                dropout: config.boft_dropout,
                key: parts.key.named("boft_dropout").named(&site.path),
            }))
        })
    }

    impl Rotation for Boft {
        fn turn(&self, x: &Tensor, noise: Option<Key>) -> Tensor {
            let skew = (&self.matrices - self.matrices.transpose(-2, -1)) * 0.5;
            let rotations = cayley(&skew);
            let factors = rotations.size()[0];
            // In a step one factor, drawn, is thinned out.
            let thinned = noise.filter(|_| self.dropout > 0.0).map(|key| {
                let drawn = (f64::from(key.named("factor").rng().uniform()) * factors as f64) as i64;
                (drawn.min(factors - 1), key)
            });
            let mut x = x.shallow_clone();
            for factor in (0..factors).rev() {
                let mut own = rotations.get(factor);
                if let Some((_, key)) = thinned.filter(|(drawn, _)| *drawn == factor) {
                    own = dropped(own, self.dropout, key);
                }
                x = match self.orders.get(factor as usize) {
                    Some([order, back]) => turn_blocks(&x.index_select(-1, back), &own).index_select(-1, order),
                    None => turn_blocks(&x, &own),
                };
            }
            x
        }

        fn scale(&self) -> Option<Tensor> {
            Some(self.scale.squeeze_dim(1))
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
    fn butterflies_put_even_half_blocks_before_odd_ones() {
        let shape = Shape { factors: 2, blocks: 4, width: 2 };
        assert_eq!(butterfly(8, shape, 0), [0, 1, 2, 3, 4, 5, 6, 7], "groups of one block: two pieces in order");
        assert_eq!(butterfly(8, shape, 1), [0, 2, 1, 3, 4, 6, 5, 7], "groups of two blocks");
        assert_eq!(butterfly(8, Shape { width: 4, blocks: 2, factors: 2 }, 1), [0, 1, 4, 5, 2, 3, 6, 7]);
    }
}
