//! From logits to weights, and from weights to the factors of a row.

use tch::{Kind, Tensor};

use super::Config;

/// What keeps sums away from zero.
const EPS: f64 = 1e-12;

/// How logits become weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) straight_through: bool,
    pub(crate) l2_norm: bool,
    pub(crate) shared_skill: bool,
    pub(crate) average_correction: bool,
}

/// What training draws for each row, each `[b, q, S]`.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    /// Uniform in (0, 1): the relaxed Bernoulli's.
    pub(crate) uniform: Option<Tensor>,
    /// Dropout's factors.
    pub(crate) keep: Option<Tensor>,
}

impl Rule {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            straight_through: config.module_logits_straight_through,
            l2_norm: config.module_logits_l2_norm,
            shared_skill: config.poly_use_shared_skill,
            average_correction: config.poly_average_correction,
        }
    }

    /// The weights `[b, q, S]` of the logits `[b, q, S]` of each row's task.
    pub(crate) fn weights(self, logits: &Tensor, draws: &Draws) -> Tensor {
        if self.l2_norm {
            return logits / logits.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true).clamp_min(EPS);
        }
        let mut z = match &draws.uniform {
            Some(u) => (u.log() - (-u).log1p() + logits).sigmoid(),
            None => logits.sigmoid(),
        };
        if self.straight_through && draws.uniform.is_none() {
            z = &z + (z.round() - &z).detach();
        }
        if let Some(keep) = &draws.keep {
            z = keep * &z; // never in place: the gradient of the sigmoid needs its result
        }
        let (q, s) = (z.size()[1], z.size()[2]);
        if self.shared_skill {
            let last = z.narrow(-1, s - 1, 1).ones_like();
            z = Tensor::cat(&[z.narrow(-1, 0, s - 1), last], -1);
        }
        if self.average_correction {
            z * (q as f64 / s as f64).sqrt()
        } else {
            let sum = z.sum_dim_intlist([-1i64].as_slice(), true, z.kind());
            z / (sum + EPS)
        }
    }
}

/// Weights `[1, q, S]` that are all alike.
pub(crate) fn alike(q: i64, s: i64, like: &Tensor) -> Tensor {
    Tensor::full([1, q, s], 1.0 / s as f64, (like.kind(), like.device()))
}

/// The logits `[b, q, S]` of these tasks, of `logits` `[tasks, q S]`. A task that is not there gets a gradient of exactly
/// zero, and the sum over rows has one order on every device.
pub(crate) fn of_tasks(logits: &Tensor, tasks: &[i64], q: i64) -> Tensor {
    let ids = Tensor::from_slice(tasks).to_device(logits.device());
    let chosen = ids.one_hot(logits.size()[0]).to_kind(logits.kind()).matmul(logits); // [b, q S]
    chosen.reshape([tasks.len() as i64, q, -1])
}

/// The skills of one linear map.
#[derive(Debug)]
pub(crate) struct Skills {
    pub(crate) a: Tensor, // [q, S, in / q, r]
    pub(crate) b: Tensor, // [q, S, r, out / q]
    pub(crate) scale: f64,
}

impl Skills {
    /// `A` `[b, in, r]` and `B` `[b, r, out]` of rows with the weights `[b, q, S]`.
    pub(crate) fn mixed(&self, weights: &Tensor) -> (Tensor, Tensor) {
        let (rows, r) = (weights.size()[0], self.a.size()[3]);
        let a = Tensor::einsum("bqs,qsdr->bqdr", &[weights, &self.a], None::<i64>).reshape([rows, -1, r]);
        let b = Tensor::einsum("bqs,qsrd->brqd", &[weights, &self.b], None::<i64>).reshape([rows, r, -1]);
        (a, b)
    }

    /// What is added for `x` `[b, t, in]`: `[b, t, out]`.
    pub(crate) fn added(&self, x: &Tensor, weights: &Tensor) -> Tensor {
        let (a, b) = self.mixed(weights);
        x.matmul(&a).matmul(&b) * self.scale
    }

    /// The factors of one LoRA, `[in, r]` and `[r, out]`, with the weights `[1, q, S]`.
    pub(crate) fn lora(&self, weights: &Tensor) -> (Tensor, Tensor) {
        let (a, b) = self.mixed(weights);
        (a.get(0), b.get(0))
    }

    /// What that LoRA adds to the weight: `[out, in]`, float32.
    pub(crate) fn delta(&self, weights: &Tensor) -> Tensor {
        let (a, b) = self.lora(weights);
        (a.matmul(&b) * self.scale).tr().to_kind(Kind::Float)
    }
}
