//! `init_lora_weights`: how the factors begin.
//!
//! PiSSA and OLoRA begin at a part of the frozen weight itself and take that part out of the base. The base is never
//! changed here: the first product is kept beside the factors and subtracted, `y = W x + s (B A - B0 A0) x`. It is
//! worked out from the frozen weight alone, so that a saved adapter finds it again.
//!
//! Meng, Wang, Zhang, *PiSSA: Principal Singular Values and Singular Vectors Adaptation*, 2024. Büyükakyüz, *OLoRA*,
//! 2024.

use pleach_base::{Result, code};
use pleach_nn::{Init, Role, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;

/// `init_lora_weights`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum InitWeights {
    /// The usual, or none.
    Flag(bool),
    /// By name.
    Named(String),
}

/// What `init_lora_weights` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Uniform `A`, zero `B`.
    Usual,
    /// Both random: no identity.
    Random,
    /// Normal `A`, zero `B`.
    Gaussian,
    /// Both random, with a product that is zero: their ranks are orthogonal.
    Orthogonal,
    /// The largest singular values of the frozen weight; with `rounds` found by so many subspace iterations.
    Pissa { rounds: Option<u32> },
    /// The first columns of the frozen weight's orthogonal factor.
    Olora,
}

impl InitWeights {
    /// # Errors
    /// `METHOD_CONFIG` for names that this build does not have.
    pub(super) fn start(&self) -> Result<Start> {
        let name = match self {
            Self::Flag(true) => return Ok(Start::Usual),
            Self::Flag(false) => return Ok(Start::Random),
            Self::Named(name) => name.to_ascii_lowercase(),
        };
        let rounds = || name.strip_prefix("pissa_niter_").and_then(|rounds| rounds.parse().ok());
        match name.as_str() {
            "gaussian" => Ok(Start::Gaussian),
            "orthogonal" => Ok(Start::Orthogonal),
            "pissa" => Ok(Start::Pissa { rounds: None }),
            "olora" => Ok(Start::Olora),
            _ => match rounds() {
                Some(rounds) => Ok(Start::Pissa { rounds: Some(rounds) }),
                None => Err(refuse("init_lora_weights", &format!("this build does not have `{name}`"))
                    .hint("one of true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora")),
            },
        }
    }
}

impl Start {
    /// Whether the factors begin at a part of the frozen weight.
    pub(super) fn takes_from_base(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }

    /// How `A` and `B` begin at a site; they are maps from `fan_in` and from `low` numbers.
    pub(super) fn inits(self, site: &Site, r: usize, fan_in: usize, low: usize) -> (Init, Init) {
        let uniform = |fan_in: usize| Init::Uniform { bound: 1.0 / (fan_in as f32).sqrt() };
        if site.role == Role::Embed {
            let normal = Init::Normal { std: 1.0 };
            return if self == Self::Random { (normal, normal) } else { (Init::Zeros, normal) };
        }
        match self {
            Self::Usual => (uniform(fan_in), Init::Zeros),
            Self::Random => (uniform(fan_in), uniform(low)),
            Self::Gaussian => (Init::Normal { std: 1.0 / r as f32 }, Init::Zeros),
            Self::Orthogonal | Self::Pissa { .. } | Self::Olora => (Init::Derived, Init::Derived),
        }
    }

    /// Refuses ranks and sites that it cannot begin at.
    ///
    /// # Errors
    /// `METHOD_CONFIG`.
    pub(super) fn check(self, site: &Site, r: usize) -> Result<()> {
        let most = site.dims.input.min(site.dims.output);
        let input_first = || site.weight.as_ref().is_some_and(|w| w.layout == pleach_nn::WeightLayout::InOut);
        let plain = matches!(site.role, Role::Linear | Role::Head);
        let why = match self {
            Self::Orthogonal if r % 2 == 1 => format!("`orthogonal` needs an even rank, `{}` has {r}", site.path),
            Self::Orthogonal | Self::Pissa { .. } | Self::Olora if !plain && site.role != Role::Embed => {
                format!("only linear maps can begin so, `{}` is none", site.path)
            }
            Self::Pissa { .. } | Self::Olora if plain && r > most => {
                format!("a rank of {r} is more than `{}` has, {most}", site.path)
            }
            Self::Olora if input_first() => {
                format!("`olora` does not work where weights are input first: `{}`", site.path)
            }
            _ => return Ok(()),
        };
        Err(code::METHOD_CONFIG.error(format!("init_lora_weights: {why}")))
    }
}

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::rng::Key;
    use pleach_nn::{Init, draw};
    use tch::{Device, Kind, Tensor};

    use super::Start;

    impl Start {
        /// `A` `[r, in]` and `B` `[out, r]` at a frozen weight `[out, in]`, float32. What is taken from the
        /// base does not depend on `key`, which is that of the one tensor wanted.
        pub(in super::super) fn factors(
            self,
            weight: &Tensor,
            r: i64,
            scaling: f64,
            path: &str,
            key: Key,
        ) -> (Tensor, Tensor) {
            match self {
                Self::Olora => {
                    let (q, upper) = Tensor::linalg_qr(weight, "reduced");
                    (upper.narrow(0, 0, r), q.narrow(1, 0, r))
                }
                Self::Pissa { rounds } => {
                    let (u, s, v) = match rounds {
                        None => weight.svd(true, true),
                        Some(rounds) => subspace(weight, r, rounds),
                    };
                    let root = (s.narrow(0, 0, r) / scaling).sqrt();
                    (v.narrow(1, 0, r).tr() * root.unsqueeze(1), u.narrow(1, 0, r) * root)
                }
                Self::Usual | Self::Random | Self::Gaussian | Self::Orthogonal => orthogonal(weight, r, path, key),
            }
        }
    }

    fn normal(key: Key, rows: i64, columns: i64, device: Device) -> Tensor {
        let shape = [rows as usize, columns as usize];
        draw(Init::Normal { std: 1.0 }, key, &shape, device)
            .unwrap_or_else(|| Tensor::zeros([rows, columns], (Kind::Float, device)))
    }

    /// The odd and the even rows of an orthogonal matrix carry the two factors. That matrix depends on the site alone:
    /// both factors need the same.
    fn orthogonal(weight: &Tensor, r: i64, path: &str, key: Key) -> (Tensor, Tensor) {
        let (out, input, device) = (weight.size()[0], weight.size()[1], weight.device());
        let square = normal(Key::seed(0).named("orthogonal").named(path), r, r, device);
        let rows = Tensor::linalg_qr(&square, "reduced").0.reshape([r / 2, 2, r]);
        let a = normal(key, input, r / 2, device).matmul(&rows.select(1, 0)).tr() / 10.0;
        let b = normal(key, r / 2, out, device).tr().matmul(&rows.select(1, 1)) / 10.0;
        (a, b)
    }

    /// The leading singular triplets by subspace iteration from a start that is always the same (Halko, Martinsson,
    /// Tropp, 2009, algorithms 4.4 and 5.1).
    fn subspace(weight: &Tensor, r: i64, rounds: u32) -> (Tensor, Tensor, Tensor) {
        let basis = |x: &Tensor| Tensor::linalg_qr(x, "reduced").0;
        let start = normal(Key::seed(0).named("pissa"), weight.size()[1], r, weight.device());
        let mut q = basis(&weight.matmul(&start));
        for _ in 0..rounds {
            q = basis(&weight.tr().matmul(&q));
            q = basis(&weight.matmul(&q));
        }
        let (u, s, v) = q.tr().matmul(weight).svd(true, true);
        (q.matmul(&u), s, v)
    }
}
