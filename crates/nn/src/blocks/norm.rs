//! Normalisations over the last axis.

use super::builder::{Builder, Module, same};
use crate::site::{Part, Role, SiteId, WeightLayout};

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// Mean zero, variance one, scale and shift.
    Layer,
    /// Mean square one, scale.
    Rms,
}

/// A normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormSpec {
    site: SiteId,
    kind: NormKind,
    eps: f64,
    width: usize,
}

impl NormSpec {
    pub(crate) fn new(b: &mut Builder, path: String, kind: NormKind, width: usize, eps: f64) -> Self {
        let (role, part, layout) = (Role::Norm, Part::Other, WeightLayout::Plain);
        let bias = kind == NormKind::Layer;
        let site = b.module(Module { path, role, part, dims: same(width), layout, bias, tied: None });
        Self { site, kind, eps, width }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Norm;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{NormKind, NormSpec};
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded normalisation.
    #[derive(Debug)]
    pub(crate) struct Norm {
        spec: NormSpec,
        weights: OpWeights,
    }

    impl Norm {
        pub(crate) fn load(spec: NormSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self { spec, weights: weights.of(&sites[spec.site])? })
        }

        /// `[.., width]` to the same shape and kind.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            cx.at_one(self.spec.site, x.shallow_clone(), Some(&self.weights), &|_, x, own| {
                let OpWeights { weight, bias } = own.unwrap_or(&self.weights);
                let (x, eps) = (&x[0], self.spec.eps);
                vec![match self.spec.kind {
                    NormKind::Layer => x.layer_norm([self.spec.width as i64], Some(weight), bias.as_ref(), eps, true),
                    NormKind::Rms => {
                        // In float32, then back, then the scale: the order that decides the last bit in bfloat16.
                        let wide = x.to_kind(Kind::Float);
                        let square = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
                        weight * (wide * (square + eps).rsqrt()).to_kind(x.kind())
                    }
                }]
            })
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            see(self.spec.site, &self.weights);
        }
    }
}
