//! Affine maps: `y = x W^T + b`, with the weight stored either way round.

use super::builder::{Builder, Module};
use crate::site::{Dims, Part, Role, SiteId, WeightLayout};

/// An affine map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearSpec {
    pub(crate) site: SiteId,
    layout: WeightLayout,
}

impl LinearSpec {
    /// A linear map within the model.
    pub(crate) fn new(b: &mut Builder, path: String, part: Part, input: usize, output: usize, bias: bool) -> Self {
        let dims = Dims { input, output, heads: None };
        Self::of(b, Module { bias, ..Module::new(path, Role::Linear, part, dims, WeightLayout::OutIn) })
    }

    /// The same with the weight the other way round, as `Conv1D` stores it, and a bias.
    pub(crate) fn conv1d(b: &mut Builder, path: String, part: Part, input: usize, output: usize) -> Self {
        let dims = Dims { input, output, heads: None };
        Self::of(b, Module { bias: true, ..Module::new(path, Role::Linear, part, dims, WeightLayout::InOut) })
    }

    /// A linear map that makes the output, with the weight of another module when `tied`.
    pub(crate) fn head(b: &mut Builder, path: &str, dims: (usize, usize), bias: bool, tied: Option<&str>) -> Self {
        let dims = Dims { input: dims.0, output: dims.1, heads: None };
        let module = Module::new(path, Role::Head, Part::Other, dims, WeightLayout::OutIn);
        Self::of(b, Module { bias, weight: tied, ..module })
    }

    /// Any module that is an affine map.
    pub(crate) fn of(b: &mut Builder, module: Module<'_>) -> Self {
        let layout = module.layout;
        Self { site: b.module(module), layout }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Linear;

#[cfg(feature = "torch")]
mod imp {
    use tch::Tensor;

    use super::LinearSpec;
    use crate::run::{Forward, OpWeights};
    use crate::site::WeightLayout;

    /// A loaded affine map.
    #[derive(Debug)]
    pub(crate) struct Linear {
        spec: LinearSpec,
        weights: OpWeights,
    }

    impl Linear {
        crate::blocks::alike::at_site!(LinearSpec);

        /// `[.., in]` to `[.., out]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            let layout = self.spec.layout;
            cx.at_one(self.spec.site, x.shallow_clone(), Some(&self.weights), &|_, x, own| {
                let OpWeights { weight, bias } = own.unwrap_or(&self.weights);
                let weight = match layout {
                    WeightLayout::InOut => weight.tr(),
                    WeightLayout::OutIn | WeightLayout::Conv | WeightLayout::Plain => weight.shallow_clone(),
                };
                vec![x[0].linear(&weight, bias.as_ref())]
            })
        }
    }
}
