//! The feed-forward part: `down(act(up(x)))`, or gated, `down(act(gate(x)) * up(x))`.

use pleach_base::{Result, code, suggest};

use super::LinearSpec;

/// An activation, by its name in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Gelu,
    GeluTanh,
    Relu,
    Silu,
}

impl Activation {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            other => {
                let known = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"];
                return Err(code::MODEL_CONFIG
                    .error(format!("config.json: hidden_act `{other}` is not known"))
                    .hint(suggest::did_you_mean(other, known)));
            }
        })
    }
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpSpec {
    pub(crate) gate: Option<LinearSpec>,
    pub(crate) up: LinearSpec,
    pub(crate) down: LinearSpec,
    pub(crate) activation: Activation,
}

#[cfg(feature = "torch")]
pub(crate) use imp::Mlp;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{Activation, MlpSpec};
    use crate::blocks::linear::Linear;
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    impl Activation {
        pub(crate) fn run(self, x: &Tensor) -> Tensor {
            match self {
                Self::Gelu => x.gelu("none"),
                Self::GeluTanh => x.gelu("tanh"),
                Self::Relu => x.relu(),
                Self::Silu => x.silu(),
            }
        }
    }

    /// The loaded feed-forward part.
    #[derive(Debug)]
    pub(crate) struct Mlp {
        gate: Option<Linear>,
        up: Linear,
        down: Linear,
        activation: Activation,
    }

    impl Mlp {
        pub(crate) fn load(spec: &MlpSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let gate = spec.gate.map(load).transpose()?;
            Ok(Self { gate, up: load(spec.up)?, down: load(spec.down)?, activation: spec.activation })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            let inner = match &self.gate {
                Some(gate) => self.activation.run(&gate.run(cx, x)) * self.up.run(cx, x),
                None => self.activation.run(&self.up.run(cx, x)),
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
