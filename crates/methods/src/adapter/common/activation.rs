//! Activations that a method puts between its own maps, under the names that transformers gives them.

use pleach_base::Result;

use super::refuse;

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Relu,
    Relu2,
    Relu6,
    LeakyRelu,
    Gelu,
    GeluTanh,
    QuickGelu,
    Silu,
    Mish,
    Tanh,
    Sigmoid,
    Linear,
}

impl Activation {
    /// The activation that the option `field` names, in any case.
    ///
    /// # Errors
    /// `METHOD_CONFIG`.
    pub(crate) fn parse(field: &str, name: &str) -> Result<Self> {
        Ok(match name.to_lowercase().as_str() {
            "relu" => Self::Relu,
            "relu2" => Self::Relu2,
            "relu6" => Self::Relu6,
            "leakyrelu" | "leaky_relu" => Self::LeakyRelu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "silu" | "swish" => Self::Silu,
            "mish" => Self::Mish,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "linear" => Self::Linear,
            _ => {
                return Err(refuse(field, &format!("`{name}` is not an activation of this build"))
                    .hint("one of relu, relu2, relu6, leakyrelu, gelu, gelu_new, quick_gelu, silu, mish, tanh, sigmoid, linear"));
            }
        })
    }

    /// The activation of `x`, of any shape.
    #[cfg(feature = "torch")]
    pub(crate) fn run(self, x: &tch::Tensor) -> tch::Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Relu2 => x.relu().square(),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::LeakyRelu => x.leaky_relu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
            Self::Silu => x.silu(),
            Self::Mish => x.mish(),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => x.sigmoid(),
            Self::Linear => x.shallow_clone(),
        }
    }
}
