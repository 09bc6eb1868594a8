//! Table lookups.

use super::builder::{Builder, Module};
use crate::site::{Dims, Part, Role, SiteId, WeightLayout};

/// A table of `rows` vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedSpec {
    pub(crate) site: SiteId,
}

impl EmbedSpec {
    pub(crate) fn new(b: &mut Builder, path: &str, rows: usize, width: usize) -> Self {
        let dims = Dims { input: rows, output: width, heads: None };
        let (role, part, layout) = (Role::Embed, Part::Other, WeightLayout::Plain);
        Self { site: b.module(Module { path: path.to_owned(), role, part, dims, layout, bias: false, tied: None }) }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Embed;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::EmbedSpec;
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded table.
    #[derive(Debug)]
    pub(crate) struct Embed {
        site: SiteId,
        weights: OpWeights,
    }

    impl Embed {
        pub(crate) fn load(spec: EmbedSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self { site: spec.site, weights: weights.of(&sites[spec.site])? })
        }

        /// Numbers of any shape to `[.., width]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, ids: &Tensor) -> Tensor {
            cx.at_one(self.site, ids.shallow_clone(), Some(&self.weights), &|_, x, own| {
                vec![Tensor::embedding(&own.unwrap_or(&self.weights).weight, &x[0], -1, false, false)]
            })
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            see(self.site, &self.weights);
        }
    }
}
