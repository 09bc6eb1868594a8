//! The feed-forward part: `down(act(up(x)))`, or gated, `down(act(gate(x)) * up(x))`.

use pleach_base::{Result, suggest};

use super::{LinearSpec, SparseSpec};
use crate::model::{Config, bad};

/// An activation, by its name in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Gelu,
    GeluTanh,
    QuickGelu,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// The activation that a field of `config.json` names.
    pub(crate) fn read(config: Config<'_>, field: &str, default: &str) -> Result<Self> {
        Self::named(field, config.text(field)?.unwrap_or(default))
    }

    /// The activation of this name, from the field of `config.json`.
    pub(crate) fn named(field: &str, name: &str) -> Result<Self> {
        const KNOWN: [(&str, Activation); 10] = [
            ("gelu", Activation::Gelu),
            ("gelu_python", Activation::Gelu),
            ("gelu_new", Activation::GeluTanh),
            ("gelu_pytorch_tanh", Activation::GeluTanh),
            ("gelu_fast", Activation::GeluTanh),
            ("quick_gelu", Activation::QuickGelu),
            ("relu", Activation::Relu),
            ("silu", Activation::Silu),
            ("swish", Activation::Silu),
            ("tanh", Activation::Tanh),
        ];
        let found = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation);
        found.ok_or_else(|| {
            bad(field, &format!("`{name}` is not known"))
                .hint(suggest::did_you_mean(name, KNOWN.iter().map(|(known, _)| *known)))
        })
    }
}

/// The feed-forward part, dense or of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FeedSpec {
    Dense(MlpSpec),
    Sparse(SparseSpec),
}

impl From<MlpSpec> for FeedSpec {
    fn from(spec: MlpSpec) -> Self {
        Self::Dense(spec)
    }
}

impl From<SparseSpec> for FeedSpec {
    fn from(spec: SparseSpec) -> Self {
        Self::Sparse(spec)
    }
}

/// The dense feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpSpec {
    pub(crate) gate: Option<LinearSpec>,
    /// Gate and first map one behind the other when `fused`.
    pub(crate) up: LinearSpec,
    pub(crate) fused: bool,
    pub(crate) down: LinearSpec,
    pub(crate) activation: Activation,
}

#[cfg(feature = "torch")]
pub(crate) use imp::Feed;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{Activation, FeedSpec, MlpSpec};
    use crate::blocks::linear::Linear;
    use crate::blocks::sparse::Sparse;
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    impl Activation {
        pub(crate) fn run(self, x: &Tensor) -> Tensor {
            match self {
                Self::Gelu => x.gelu("none"),
                Self::GeluTanh => x.gelu("tanh"),
                Self::QuickGelu => x * (x * 1.702).sigmoid(),
                Self::Relu => x.relu(),
                Self::Silu => x.silu(),
                Self::Tanh => x.tanh(),
            }
        }
    }

    /// The loaded feed-forward part.
    #[derive(Debug)]
    pub(crate) enum Feed {
        Dense(Mlp),
        Sparse(Sparse),
    }

    impl Feed {
        pub(crate) fn load(spec: &FeedSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(match spec {
                FeedSpec::Dense(spec) => Self::Dense(Mlp::load(spec, sites, weights)?),
                FeedSpec::Sparse(spec) => Self::Sparse(Sparse::load(spec, sites, weights)?),
            })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            match self {
                Self::Dense(part) => part.run(cx, x),
                Self::Sparse(part) => part.run(cx, x),
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            match self {
                Self::Dense(part) => part.visit(see),
                Self::Sparse(part) => part.visit(see),
            }
        }
    }

    /// The loaded dense part.
    #[derive(Debug)]
    pub(crate) struct Mlp {
        gate: Option<Linear>,
        up: Linear,
        fused: bool,
        down: Linear,
        activation: Activation,
    }

    impl Mlp {
        pub(crate) fn load(spec: &MlpSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let gate = spec.gate.map(load).transpose()?;
            let MlpSpec { up, fused, down, activation, .. } = *spec;
            Ok(Self { gate, up: load(up)?, fused, down: load(down)?, activation })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            let activate = |x: &Tensor| cx.each(x, |x| self.activation.run(x));
            let inner = match &self.gate {
                Some(gate) => activate(&gate.run(cx, x)) * self.up.run(cx, x),
                None if self.fused => {
                    let halves = self.up.run(cx, x).chunk(2, -1);
                    activate(&halves[0]) * &halves[1]
                }
                None => activate(&self.up.run(cx, x)),
            };
            self.down.run(cx, &inner)
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for linear in self.gate.iter().chain([&self.up, &self.down]) {
                linear.visit(see);
            }
        }
    }
}
