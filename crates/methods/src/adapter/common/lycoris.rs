//! What LoHa and LoKr share: a weight `[out, in]` put together from small factors, its scaling, and two kinds of
//! dropout, of rows of that weight and of the module as a whole.
//!
//! Both are drawn once a step and module from the task's key, so that all samples of a step see the same and ranks agree.

use indexmap::IndexMap;
use pleach_base::Result;
use pleach_nn::Sites;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{positive, positive_number, share};

/// Options of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Lycoris {
    /// Rank.
    pub r: u32,
    /// Numerator of the scaling `alpha / r`.
    pub alpha: f64,
    /// Share of the added weight's rows that are dropped in training.
    pub rank_dropout: f64,
    /// Share of steps in which a module is left as it is in training.
    pub module_dropout: f64,
    /// Decompose convolutions over more than one place with a core over their window, rather than as linear maps of it.
    pub use_effective_conv2d: bool,
    /// Other ranks for some modules: names or expressions to ranks.
    pub rank_pattern: IndexMap<String, u32>,
    /// Other numerators for some modules.
    pub alpha_pattern: IndexMap<String, f64>,
}

impl Default for Lycoris {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            use_effective_conv2d: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
        }
    }
}

impl Lycoris {
    /// Refuses values that no model could use.
    ///
    /// # Errors
    /// `METHOD_CONFIG`.
    pub(crate) fn validate(&self) -> Result<()> {
        positive("r", self.r)?;
        positive_number("alpha", self.alpha)?;
        for (name, r) in &self.rank_pattern {
            positive(&format!("rank_pattern.{name}"), *r)?;
        }
        for (name, alpha) in &self.alpha_pattern {
            positive_number(&format!("alpha_pattern.{name}"), *alpha)?;
        }
        share("rank_dropout", self.rank_dropout)?;
        share("module_dropout", self.module_dropout)
    }

    /// The rank at the module with this path.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for a pattern that is no expression.
    pub(crate) fn rank(&self, path: &str) -> Result<usize> {
        Ok(Sites::pattern_value(path, &self.rank_pattern, "rank_pattern")?.copied().unwrap_or(self.r) as usize)
    }

    /// Whether a convolution over this window is decomposed with a core.
    pub(crate) fn has_core(&self, window: &[usize]) -> bool {
        self.use_effective_conv2d && window.iter().any(|places| *places != 1)
    }

    /// The scaling there.
    ///
    /// # Errors
    /// As [`Lycoris::rank`].
    #[cfg(feature = "torch")]
    pub(crate) fn scaling(&self, path: &str) -> Result<f64> {
        let alpha = Sites::pattern_value(path, &self.alpha_pattern, "alpha_pattern")?.copied().unwrap_or(self.alpha);
        Ok(alpha / self.rank(path)? as f64)
    }
}

/// The shape of a core between two factors of rank `r` over this window: always two axes of it.
pub(crate) fn core(r: usize, window: &[usize]) -> [usize; 4] {
    [r, r, window.first().copied().unwrap_or(1), window.get(1).copied().unwrap_or(1)]
}

#[cfg(feature = "torch")]
pub(crate) use imp::{Dropped, Product, inner, outer};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use pleach_nn::SiteCx;
    use tch::{Kind, Tensor};

    use super::Lycoris;
    use crate::adapter::common::{Addition, Dropout};

    /// A weight put together from factors.
    pub(crate) trait Product: Send {
        /// `[out, in]`, before scaling; of a convolution `[out, ..]` with the elements of its weight in order.
        fn product(&self) -> Tensor;
    }

    /// A core `[r, r, window]` with a factor `b` `[r, in]`: `[r, in, window]`.
    pub(crate) fn inner(core: &Tensor, b: &Tensor) -> Tensor {
        Tensor::einsum("ijkl,jr->irkl", &[core, b], None::<&[i64]>)
    }

    /// The weight `[out, in, window]` of an [`inner`] part and a factor `a` `[r, out]`.
    pub(crate) fn outer(inner: &Tensor, a: &Tensor) -> Tensor {
        Tensor::einsum("irkl,ip->prkl", &[inner, a], None::<&[i64]>)
    }

    /// The weight, scaled and in training dropped by rows and as a whole.
    pub(crate) struct Dropped<P> {
        product: P,
        scaling: f64,
        rows: Dropout,
        module: Dropout,
        /// Rows that stay make up for those that do not.
        rescale: bool,
    }

    impl<P: Product> Dropped<P> {
        /// At the module with this path; `root` is the task's key.
        ///
        /// # Errors
        /// As [`Lycoris::scaling`].
        pub(crate) fn new(product: P, options: &Lycoris, rescale: bool, root: Key, path: &str) -> Result<Self> {
            Ok(Self {
                product,
                scaling: options.scaling(path)?,
                rows: Dropout::new(options.rank_dropout, root, "rank_dropout", path),
                module: Dropout::new(options.module_dropout, root, "module_dropout", path),
                rescale,
            })
        }

        /// One factor for every row of the weight.
        fn kept(&self, cx: &SiteCx<'_>, rows: i64) -> Vec<f32> {
            let count = usize::try_from(rows).unwrap_or_default();
            if self.module.is_on(cx) && f64::from(self.module.now(cx).rng().uniform()) < self.module.p {
                return vec![0.0; count];
            }
            let mut rng = self.rows.now(cx).rng();
            let mut kept: Vec<f32> =
                (0..count).map(|_| if f64::from(rng.uniform()) < self.rows.p { 0.0 } else { 1.0 }).collect();
            let sum: f32 = kept.iter().sum();
            if self.rescale && sum > 0.0 {
                kept.iter_mut().for_each(|row| *row *= count as f32 / sum);
            }
            kept
        }
    }

    impl<P: Product> Addition for Dropped<P> {
        fn added(&self, cx: &SiteCx<'_>, x: &Tensor) -> Tensor {
            x.to_kind(Kind::Float).linear(&self.delta_now(cx), None::<&Tensor>)
        }

        fn delta_now(&self, cx: &SiteCx<'_>) -> Tensor {
            let weight = self.delta();
            if !self.rows.is_on(cx) && !self.module.is_on(cx) {
                return weight;
            }
            let kept = Tensor::from_slice(&self.kept(cx, weight.size()[0])).to_device(weight.device());
            let ones = vec![1; weight.dim() - 1];
            weight * kept.reshape([vec![-1], ones].concat())
        }

        fn delta(&self) -> Tensor {
            self.product.product() * self.scaling
        }
    }
}
