//! Convolutions, as the fronts of models of images and spectrograms use them: over one axis or two.

use super::builder::{Builder, Module};
use crate::site::{Dims, Part, Role, SiteId, WeightLayout};

/// A convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvSpec {
    pub(crate) site: SiteId,
    window: Window,
}

/// What a convolution slides over its input: one axis or two, each with size and stride.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) first: (usize, usize),
    pub(crate) second: Option<(usize, usize)>,
    /// Zeros before and after every axis.
    pub(crate) padding: usize,
}

impl Window {
    /// Patches of these sizes, whose beginnings are `strides` apart.
    pub(crate) fn patches(sizes: [usize; 2], strides: [usize; 2]) -> Self {
        Self { first: (sizes[0], strides[0]), second: Some((sizes[1], strides[1])), padding: 0 }
    }
}

impl ConvSpec {
    /// The convolution at `path` from `dims.0` channels to `dims.1`.
    pub(crate) fn new(b: &mut Builder, path: String, dims: (usize, usize), window: Window, bias: bool) -> Self {
        let dims = Dims { input: dims.0, output: dims.1, heads: None };
        let sizes: Vec<_> = std::iter::once(window.first).chain(window.second).map(|(size, _)| size).collect();
        let module = Module::new(path, Role::Conv, Part::Other, dims, WeightLayout::Conv);
        Self { site: b.windowed(Module { bias, ..module }, &sizes), window }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Conv;

#[cfg(feature = "torch")]
mod imp {
    use tch::Tensor;

    use super::ConvSpec;
    use crate::run::{Forward, OpWeights};

    /// A loaded convolution.
    #[derive(Debug)]
    pub(crate) struct Conv {
        spec: ConvSpec,
        weights: OpWeights,
    }

    impl Conv {
        crate::blocks::alike::at_site!(ConvSpec);

        /// `[batch, channels, ..]` to `[batch, channels, ..]`. `cx` has the layout of one row a sequence.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            let x = x.to_kind(self.weights.weight.kind());
            cx.at_one(self.spec.site, x, Some(&self.weights), &|_, x, own| {
                let OpWeights { weight, bias } = own.unwrap_or(&self.weights);
                let (window, bias) = (self.spec.window, bias.as_ref());
                let (pad, first) = (window.padding as i64, window.first.1 as i64);
                vec![match window.second {
                    None => x[0].conv1d(weight, bias, [first], [pad], [1], 1),
                    Some((_, second)) => x[0].conv2d(weight, bias, [first, second as i64], [pad, pad], [1, 1], 1),
                }]
            })
        }
    }
}
