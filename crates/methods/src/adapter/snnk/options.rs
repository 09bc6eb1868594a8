//! The options of SNNK adapters, and what they say of a layer.

use pleach_base::Result;

use super::super::prelude::*;

options! {
    /// Options of SNNK adapters.
    pub struct Config {
        /// Random features of each adapter.
        num_rfs: u32 = 16,
        /// What the product of features stands for: `relu` (a kernel of rectified features), or an activation of `W x + b`:
        /// `cos`, `sin`, `custom_fourier` (that of `fourier_table`).
        kernel: Kernel = Kernel::Relu,
        /// Where `relu` cuts off: features are `max(G x, constant)`.
        constant: f64 = 0.0,
        /// Variance knob of the exponential features of `cos`, `sin` and `custom_fourier`; 0 are the plain ones.
        #[serde(rename = "M")]
        spread: f64 = 0.0,
        /// Rows `[k, a, b]` of the activation `f(z) = sum(a cos(2 pi k z) + b sin(2 pi k z))` of `custom_fourier`.
        fourier_table: Option<Vec<[f64; 3]>> = None,
        /// Orthogonal rows of the random matrix, block by block, with the lengths of independent ones.
        orthogonal: bool = false,
        /// How inputs and initial weights are scaled before the features: `none`, `l2` (to length one), `d_quarter` (divided
        /// by the fourth root of the width). Left out: `none` for `relu`, else `d_quarter`.
        normalize: Option<Normalize> = None,
        /// Width of the layer, with a map back behind it; left out: the hidden width, with a trained factor a channel.
        down_sample: Option<u32> = None,
        /// How the layer's initial weights are drawn: `mam` (Kaiming uniform, the map back at zero) or `bert` (normal with
        /// deviation 0.02, the map back too).
        init_weights: InitWeights = InitWeights::Mam,
        /// Behind which parts of a block: `attn`, `ffn`, `cross` (attention to an encoder).
        positions: Vec<Position> = vec![Position::Attn, Position::Ffn],
        /// A new normalisation of what goes into the layer.
        ln_before: bool = false,
        /// Seed of the random matrices.
        seed: u64 = 0,
        /// What draws them: a counter-based generator, which every rank and every reader has.
        generator: Generator = Generator::Philox,
        /// Save the random matrices with the adapter; they are drawn again from the seed otherwise.
        save_projection: bool = true,
        /// sha256 of the random matrices. Written with the adapter; what is built must have this one.
        projection_checksum: Option<String> = None,
        /// Modules that are trained and saved whole. Classification adds its head by itself.
        modules_to_save: Option<Vec<String>> = None,
    }
}

/// `kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// Rectified features.
    Relu,
    /// Cosine.
    Cos,
    /// Sine.
    Sin,
    /// That of `fourier_table`.
    CustomFourier,
}

/// `normalize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// As they are.
    None,
    /// To length one.
    L2,
    /// Divided by the fourth root of their width.
    DQuarter,
}

/// `init_weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// Kaiming uniform with `a = sqrt(5)`; the map back at zero.
    Mam,
    /// Normal with deviation 0.02.
    Bert,
}

/// `positions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Behind attention.
    Attn,
    /// Behind the feed-forward part.
    Ffn,
    /// Behind attention to an encoder.
    Cross,
}

/// `generator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Generator {
    /// Philox 4x32-10, normal values by Box-Muller.
    #[serde(rename = "philox4x32-10")]
    Philox,
}

/// A wave of an activation: `a cos(2 pi k z) + b sin(2 pi k z)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wave {
    pub(crate) k: f64,
    pub(crate) a: f64,
    pub(crate) b: f64,
}

impl Wave {
    /// Its share of the spectrum.
    pub(crate) fn mass(self) -> f64 {
        self.a.hypot(self.b)
    }
}

impl Config {
    /// The waves of the activation; none for `relu`.
    pub(crate) fn waves(&self) -> Vec<Wave> {
        let k = 1.0 / std::f64::consts::TAU;
        match self.kernel {
            Kernel::Relu => Vec::new(),
            Kernel::Cos => vec![Wave { k, a: 1.0, b: 0.0 }],
            Kernel::Sin => vec![Wave { k, a: 0.0, b: 1.0 }],
            Kernel::CustomFourier => {
                self.fourier_table.iter().flatten().map(|[k, a, b]| Wave { k: *k, a: *a, b: *b }).collect()
            }
        }
    }

    /// How inputs are scaled.
    pub(crate) fn scaling(&self) -> Normalize {
        let usual = if self.kernel == Kernel::Relu { Normalize::None } else { Normalize::DQuarter };
        self.normalize.unwrap_or(usual)
    }

    /// Columns of the trained matrix: features are complex, and twice as many, for Fourier kernels.
    pub(crate) fn columns(&self) -> usize {
        let features = self.num_rfs as usize;
        if self.kernel == Kernel::Relu { features } else { 2 * features }
    }

    /// Refuses values that no model could use.
    pub(super) fn check(&self) -> Result<()> {
        positive("num_rfs", self.num_rfs)?;
        positive("down_sample", self.down_sample.unwrap_or(1))?;
        if self.positions.is_empty() {
            return Err(refuse("positions", "at least one of attn, ffn, cross"));
        }
        if self.kernel == Kernel::Relu {
            let usable = self.constant.is_finite();
            if !usable {
                return Err(refuse("constant", "must be a number"));
            }
            if self.spread != 0.0 {
                return Err(refuse("M", "is of the kernels cos, sin and custom_fourier"));
            }
        } else if self.constant != 0.0 {
            return Err(refuse("constant", "is of the kernel relu"));
        } else if !(self.spread.is_finite() && self.spread >= 0.0) {
            return Err(refuse("M", "must be at least 0"));
        }
        match (self.kernel, &self.fourier_table) {
            (Kernel::CustomFourier, None) => Err(refuse("fourier_table", "kernel custom_fourier needs it")),
            (Kernel::CustomFourier, Some(_)) => self.check_table(),
            (_, Some(_)) => Err(refuse("fourier_table", "is of the kernel custom_fourier")),
            (_, None) => Ok(()),
        }
    }

    fn check_table(&self) -> Result<()> {
        let waves = self.waves();
        let bad = |why: &str| Err(refuse("fourier_table", why));
        if waves.iter().any(|wave| ![wave.k, wave.a, wave.b].iter().all(|value| value.is_finite())) {
            return bad("all of its numbers must be finite");
        }
        if waves.iter().any(|wave| wave.k < 0.0 || (wave.k == 0.0 && wave.b != 0.0)) {
            return bad("k must be at least 0, and a constant has no sine");
        }
        if waves.iter().enumerate().any(|(i, wave)| waves[..i].iter().any(|other| other.k == wave.k)) {
            return bad("each k once");
        }
        if waves.iter().all(|wave| wave.mass() == 0.0) {
            return bad("a wave must have a height");
        }
        Ok(())
    }
}
