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
    /// Mean square one, scaled by one more than the weight.
    RmsPlusOne,
}

/// A normalisation without a place: kind, width, epsilon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormShape {
    pub(crate) kind: NormKind,
    pub(crate) width: usize,
    pub(crate) eps: f64,
}

impl NormShape {
    /// The normalisation at `path`.
    pub(crate) fn at(self, b: &mut Builder, path: impl Into<String>) -> NormSpec {
        let module = Module::new(path, Role::Norm, Part::Other, same(self.width), WeightLayout::Plain);
        NormSpec { site: b.module(Module { bias: self.kind == NormKind::Layer, ..module }), shape: self }
    }
}

/// A normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormSpec {
    site: SiteId,
    shape: NormShape,
}

#[cfg(feature = "torch")]
pub(crate) use imp::Norm;

#[cfg(feature = "torch")]
mod imp {
    use tch::{Kind, Tensor};

    use super::{NormKind, NormShape, NormSpec};
    use crate::run::{Forward, OpWeights};

    /// A loaded normalisation.
    #[derive(Debug)]
    pub(crate) struct Norm {
        spec: NormSpec,
        weights: OpWeights,
    }

    impl Norm {
        crate::blocks::alike::at_site!(NormSpec);

        /// `[.., width]` to the same shape and kind.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            cx.at_one(self.spec.site, x.shallow_clone(), Some(&self.weights), &|_, x, own| {
                let OpWeights { weight, bias } = own.unwrap_or(&self.weights);
                let (x, NormShape { kind, width, eps }) = (&x[0], self.spec.shape);
                if kind == NormKind::Layer {
                    return vec![x.layer_norm([width as i64], Some(weight), bias.as_ref(), eps, true)];
                }
                let wide = x.to_kind(Kind::Float);
                let square = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
                let unit = wide * (square + eps).rsqrt();
                // In float32, then back, then the scale, or the other way round: the last bit in bfloat16 depends on it.
                vec![match kind {
                    NormKind::RmsPlusOne => (unit * (weight.to_kind(Kind::Float) + 1.0)).to_kind(x.kind()),
                    _ => weight * unit.to_kind(x.kind()),
                }]
            })
        }
    }
}
