//! Random features: a layer `x -> f(W x + b)` as a product `Phi(x) Psi(W, b)` of features of the input alone and features
//! of the parameters alone.
//!
//! `relu`: `Phi(x) = max(G x, c) / sqrt(m)`, `Psi` alike; over draws of `G` the product is the kernel of rectified
//! features of order 1 (Cho and Saul 2009), not `max(W x, 0)`.
//!
//! Fourier kernels: with `f(z) = sum over waves of a cos(2 pi k z) + b sin(2 pi k z)`, frequencies `k` drawn with either
//! sign by the waves' heights, and `E exp(s g.(u + v) - 2 M |g|^2) (1 + 4 M)^(d / 2) = exp(u.v) exp((|u|^2 + |v|^2) / 2)`
//! for `s = sqrt(1 + 4 M)`, `u = 2 pi i k x`, `v = w`. Features are complex: first those of all `k`, then those of all
//! `-k`, each half times `1 / sqrt(2)`; the result is the real part of the product, without conjugation.

use std::f64::consts::TAU;

use pleach_base::{Result, code};
use tch::{Kind, Tensor};

use super::options::{Config, Kernel, Normalize, Wave};

/// Real numbers, or complex ones in two tensors.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) re: Tensor,
    pub(crate) im: Option<Tensor>,
}

impl Numbers {
    /// `Re(Phi Y^T)`: `[.., columns]` with `y` `[out, columns]` to `[.., out]`.
    pub(crate) fn times(&self, y: &Self) -> Tensor {
        let real = self.re.linear(&y.re, None::<&Tensor>);
        match (&self.im, &y.im) {
            (Some(im), Some(y)) => real - im.linear(y, None::<&Tensor>),
            _ => real,
        }
    }
}

/// The frozen part of a layer.
#[derive(Debug)]
pub(crate) struct Features {
    scaling: Normalize,
    constant: f64,
    spread: f64,
    waves: Vec<Wave>,
    /// The random matrix `[m, d]`.
    g: Tensor,
    /// Frequencies `[m]` of Fourier kernels.
    k: Option<Tensor>,
}

impl Features {
    /// Over these draws. Fourier kernels have frequencies.
    ///
    /// # Errors
    /// `INTERNAL` when they have not.
    pub(crate) fn new(config: &Config, g: Tensor, k: Option<Tensor>) -> Result<Self> {
        if (config.kernel == Kernel::Relu) != k.is_none() {
            return Err(code::INTERNAL.error("frequencies belong to Fourier kernels, and they need them"));
        }
        let (constant, spread) = (config.constant, config.spread);
        Ok(Self { scaling: config.scaling(), constant, spread, waves: config.waves(), g, k })
    }

    /// Features of inputs `[.., d]`: `[.., columns]`, in the precision of `x`.
    pub(crate) fn phi(&self, x: &Tensor) -> Numbers {
        let x = self.scaled(x);
        let g = self.g.to_kind(x.kind());
        let Some(k) = &self.k else { return self.rectified(&x, &g) };
        let k = k.to_kind(x.kind()) * TAU; // [m]
        let angle = x.linear(&g, None::<&Tensor>) * &k * (1.0 + 4.0 * self.spread).sqrt(); // [.., m]
        let size = (squares(&x) * k.square() * 0.5 + self.log_scale(&g)).exp(); // [.., m]
        both(&(&size * angle.cos()), &(&size * angle.sin()))
    }

    /// Features of weights `w` `[out, d]` and biases `b` `[out]`: `[out, columns]`.
    pub(crate) fn psi(&self, w: &Tensor, b: Option<&Tensor>) -> Numbers {
        let w = self.scaled(w);
        let g = self.g.to_kind(w.kind());
        let Some(k) = &self.k else { return self.rectified(&w, &g) };
        let projected = w.linear(&g, None::<&Tensor>) * (1.0 + 4.0 * self.spread).sqrt(); // [out, m]
        let size = (projected - squares(&w) * 0.5 + self.log_scale(&g)).exp();
        let [even, odd] = self.heights(k).map(|heights| heights.to_kind(w.kind()).to_device(w.device())); // [m] each
        let Some(b) = b else { return both(&(&size * even), &(&size * odd * -1.0)) };
        let phase = b.unsqueeze(1) * k.to_kind(w.kind()) * TAU; // [out, m]
        let (cos, sin) = (phase.cos(), phase.sin());
        both(&(&size * (&even * &cos + &odd * &sin)), &(&size * (&even * &sin - &odd * &cos)))
    }

    /// The activation itself, which the products of Fourier kernels have in the mean.
    pub(crate) fn exact(&self, z: &Tensor) -> Tensor {
        let wave = |wave: &Wave| (z * (TAU * wave.k)).cos() * wave.a + (z * (TAU * wave.k)).sin() * wave.b;
        self.waves.iter().map(wave).reduce(|sum, next| sum + next).unwrap_or_else(|| z.zeros_like())
    }

    /// Whether no exponential of inputs `[.., d]` leaves the range of float32: `|2 pi k x|^2 / 2` is at most 80.
    pub(crate) fn fits(&self, x: &Tensor) -> bool {
        let Some(k) = &self.k else { return true };
        let most = squares(&self.scaled(x)).max().double_value(&[]) * (k.abs().max().double_value(&[]) * TAU).powi(2);
        most / 2.0 <= 80.0
    }

    /// As `normalize` says, over the last axis.
    fn scaled(&self, x: &Tensor) -> Tensor {
        match self.scaling {
            Normalize::None => x.shallow_clone(),
            Normalize::L2 => x / squares(x).sqrt().clamp_min(1e-12),
            Normalize::DQuarter => x / (self.g.size()[1] as f64).powf(0.25),
        }
    }

    fn rectified(&self, x: &Tensor, g: &Tensor) -> Numbers {
        let features = x.linear(g, None::<&Tensor>).clamp_min(self.constant);
        Numbers { re: features / (self.g.size()[0] as f64).sqrt(), im: None }
    }

    /// Logarithm of what every exponential of a Fourier kernel is multiplied with: `[m]`.
    fn log_scale(&self, g: &Tensor) -> Tensor {
        let (m, d) = (g.size()[0] as f64, g.size()[1] as f64);
        let constant = d / 4.0 * (1.0 + 4.0 * self.spread).ln() - (2.0 * m).ln() / 2.0;
        squares(g).squeeze_dim(-1) * -self.spread + constant
    }

    /// Heights of cosine and sine at each drawn frequency, over its probability: `[m]` each. That of the sine has the
    /// frequency's sign.
    fn heights(&self, k: &Tensor) -> [Tensor; 2] {
        let all: f64 = self.waves.iter().map(|wave| wave.mass()).sum();
        let drawn = Vec::<f64>::try_from(k.to_kind(Kind::Double)).unwrap_or_default();
        let of = |k: &f64| {
            let far = |wave: &&Wave| (wave.k - k.abs()).abs();
            let wave = self.waves.iter().min_by(|a, b| far(a).total_cmp(&far(b)));
            let scaled = |height: f64, wave: &Wave| height * all / wave.mass();
            wave.map_or((0.0, 0.0), |wave| (scaled(wave.a, wave), scaled(wave.b, wave) * k.signum()))
        };
        let (even, odd): (Vec<f64>, Vec<f64>) = drawn.iter().map(of).unzip();
        [Tensor::from_slice(&even), Tensor::from_slice(&odd)]
    }
}

/// The halves of `k` and of `-k`, which are each other's conjugates.
fn both(re: &Tensor, im: &Tensor) -> Numbers {
    Numbers { re: Tensor::cat(&[re, re], -1), im: Some(Tensor::cat(&[im, &im.neg()], -1)) }
}

/// Squared lengths `[.., 1]`.
fn squares(x: &Tensor) -> Tensor {
    x.square().sum_dim_intlist([-1i64].as_slice(), true, x.kind())
}
