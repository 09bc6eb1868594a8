//! LoKr: `y = W x + b + s kron(L, R) x`, a Kronecker product of a small left and a larger right factor, with
//! `s = alpha / r`. Widths are split by `split`; a factor is a whole matrix where rank `r` would not make it smaller,
//! the product of two otherwise (the left one only with `decompose_both`).
//!
//! Attaches to linear sites that are stored output first, as PEFT's does, and to convolutions, whose window belongs to the
//! right factor, with a core `[r, r, window]` between its parts under `use_effective_conv2d`. The product is float32, the result is rounded
//! to the base's precision. See [`super::common::Lycoris`] for what it shares with LoHa.
//!
//! Yeh et al., *Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation*, 2023.

use super::common::{LINEAR_AND_CONV, Lycoris, core, plain_linear, plan_at, usual_init, window};
use super::prelude::*;

options! {
    /// Options of LoKr.
    pub struct Config {
        /// Ranks, scaling and dropout.
        #[serde(flatten)]
        product: Lycoris = Lycoris::default(),
        /// Decompose the left factor too, where the rank makes it smaller.
        decompose_both: bool = false,
        /// Width of the left factor where it divides that of the module, else the largest allowed; -1 for as near to square
        /// as possible.
        decompose_factor: i64 = -1,
        /// Scale the rows that `rank_dropout` keeps, so that their sum stays the same.
        rank_dropout_scale: bool = false,
        /// Modules.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
        /// Which factor begins at zero: `true` for the left, `lycoris` for the right, `false` for none, which is no identity.
        init_weights: InitWeights = InitWeights::Flag(true),
    }
}

/// `init_weights`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum InitWeights {
    /// The usual, or none.
    Flag(bool),
    /// By name.
    Named(String),
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "lokr",
        title: "LoKr",
        summary: "Adds a Kronecker product of small matrices to linear maps.",
        formula: "`y = W x + b + (alpha / r) kron(L, R) x`; `R` (and with `decompose_both` `L`) is a product of rank `r` \
                  where that is smaller, `L` begins at zero.",
        paper: "Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, 2023 \
                (arXiv:2309.14859)",
        roles: LINEAR_AND_CONV,
        sync: &[Sync::MeanGrads, Sync::SharedSeed],
        peft_type: Some("LOKR"),
        sample_job: sample_job!("lokr", ", r: 8, alpha: 16, target_modules: all-linear"),
        invalid: &[
            Invalid { options: r#"{"r": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"alpha_pattern": {"q_proj": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"decompose_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"decompose_factor": -2}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_weights": "gaussian"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"rank_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"factor": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        if self.decompose_factor < 1 && self.decompose_factor != -1 {
            return Err(refuse("decompose_factor", "must be at least 1, or -1"));
        }
        match &self.init_weights {
            InitWeights::Named(name) if name != "lycoris" => {
                Err(refuse("init_weights", &format!("`{name}` is not built")).hint("one of true, false, lycoris"))
            }
            InitWeights::Named(_) | InitWeights::Flag(_) => self.product.validate(),
        }
    }
}

/// Two factors of `width`, the smaller first: `factor` and the rest where it divides, else the pair with the least sum
/// whose smaller one is at most `factor`.
fn split(width: usize, factor: i64) -> (usize, usize) {
    let most = usize::try_from(factor).unwrap_or(width);
    if factor > 0 && width.is_multiple_of(most) {
        return (most, width / most);
    }
    let divisors = (1..=most.min(width)).take_while(|small| small * small <= width);
    let small = divisors.filter(|small| width.is_multiple_of(*small)).last().unwrap_or(1);
    (small, width / small)
}

/// A factor: its names whole and in parts, its shape without window, and how it begins.
struct Factor<'w> {
    whole: &'static str,
    parts: [&'static str; 2],
    shape: [usize; 2],
    rank: Option<usize>,
    /// Sizes of a convolution's window, and whether a core stands over it.
    window: (&'w [usize], bool),
    /// The part that begins at zero.
    zero: Option<usize>,
}

impl Factor<'_> {
    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let ([rows, columns], (window, has_core)) = (self.shape, self.window);
        let places: usize = window.iter().product();
        let init = |part: usize, inputs| if self.zero == Some(part) { Init::Zeros } else { usual_init(inputs) };
        let Some(r) = self.rank else {
            let init = if self.zero.is_some() { Init::Zeros } else { usual_init(columns * places) };
            return vec![parameter(site, self.whole, [&[rows, columns], window].concat(), init)];
        };
        if has_core {
            return vec![
                parameter(site, "lokr_t2", core(r, window), usual_init(r * places)),
                parameter(site, self.parts[0], [r, rows], init(0, rows)),
                parameter(site, self.parts[1], [r, columns], init(1, columns)),
            ];
        }
        vec![
            parameter(site, self.parts[0], [rows, r], init(0, r)),
            parameter(site, self.parts[1], [r, columns * places], init(1, columns * places)),
        ]
    }
}

impl Config {
    fn tensors(&self, site: &Site) -> Result<Vec<PlannedTensor>> {
        plain_linear(site, Self::CARD.title)?;
        let r = self.product.rank(&site.path)?;
        let (in_left, in_right) = split(site.dims.input, self.decompose_factor);
        let (out_left, out_right) = split(site.dims.output, self.decompose_factor);
        let window = window(site);
        let smaller = |a: usize, b: usize| (2 * r < a.max(b)).then_some(r);
        let (left_zero, right_zero) = match &self.init_weights {
            InitWeights::Flag(true) => (Some(0), None),
            InitWeights::Flag(false) => (None, None),
            InitWeights::Named(_) => (None, Some(1)),
        };
        let left = Factor {
            whole: "lokr_w1",
            parts: ["lokr_w1_a", "lokr_w1_b"],
            shape: [out_left, in_left],
            rank: smaller(out_left, in_left).filter(|_| self.decompose_both),
            window: (&[], false),
            zero: left_zero,
        };
        let right = Factor {
            whole: "lokr_w2",
            parts: ["lokr_w2_a", "lokr_w2_b"],
            shape: [out_right, in_right],
            rank: smaller(out_right, in_right),
            window: (window, self.product.has_core(window)),
            zero: right_zero,
        };
        Ok([left.tensors(site), right.tensors(site)].concat())
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
    use pleach_nn::SiteId;
    use tch::Tensor;

    use super::Config;
    use crate::adapter::common::{Added, Dropped, Product, at_sites, inner, outer};
    use crate::adapter::{Hooks, Parts};

    enum Factor {
        Whole(Tensor),
        Parts(Tensor, Tensor),
        Core(Tensor, Tensor, Tensor),
    }

    struct Kron {
        left: Factor,
        right: Factor,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| {
            let left = factor(parts, site.id, ["lokr_w1", "lokr_w1_a", "lokr_w1_b"])?;
            let right = factor(parts, site.id, ["lokr_w2", "lokr_w2_a", "lokr_w2_b"])?;
            let kron = Kron { left, right };
            Ok(Added::at(site, Dropped::new(kron, &config.product, config.rank_dropout_scale, parts.key, &site.path)?))
        })
    }

    fn factor(parts: &Parts<'_>, site: SiteId, [whole, a, b]: [&str; 3]) -> Result<Factor> {
        let part = |part| Ok(parts.part(site, part)?.shallow_clone());
        let has = |part| parts.plan.part(site, part).is_some();
        Ok(match whole {
            whole if has(whole) => Factor::Whole(part(whole)?),
            "lokr_w2" if has("lokr_t2") => Factor::Core(part("lokr_t2")?, part(a)?, part(b)?),
            _ => Factor::Parts(part(a)?, part(b)?),
        })
    }

    impl Factor {
        fn matrix(&self) -> Tensor {
            match self {
                Self::Whole(whole) => whole.shallow_clone(),
                Self::Parts(a, b) => a.matmul(b),
                Self::Core(core, a, b) => outer(&inner(core, b), a),
            }
        }
    }

    impl Product for Kron {
        fn product(&self) -> Tensor {
            let (left, right) = (self.left.matrix(), self.right.matrix());
            // Over the first two axes: a window of two axes stays as it is.
            let left = if right.dim() == 4 { left.unsqueeze(2).unsqueeze(2) } else { left };
            left.kron(&right)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    /// The pairs that PEFT's `factorization` gives.
    #[test]
    fn widths_are_split_as_peft_splits_them() {
        let near: Vec<_> = [1, 2, 3, 7, 12, 16, 56, 64, 127, 128, 250, 360, 512, 1024].map(|n| split(n, -1)).to_vec();
        let expected = [
            (1, 1),
            (1, 2),
            (1, 3),
            (1, 7),
            (3, 4),
            (4, 4),
            (7, 8),
            (8, 8),
            (1, 127),
            (8, 16),
            (10, 25),
            (18, 20),
            (16, 32),
            (32, 32),
        ];
        assert_eq!(near, expected);
        let four: Vec<_> = [2, 6, 7, 12, 64, 90, 125].map(|n| split(n, 4)).to_vec();
        assert_eq!(four, [(1, 2), (2, 3), (1, 7), (4, 3), (4, 16), (3, 30), (1, 125)]);
        assert_eq!([split(64, 64), split(64, 16), split(8, 12)], [(64, 1), (16, 4), (2, 4)]);
    }
}
