//! Normalisation of states `[items, q, r]`: what a context's sum of outer products becomes before it is a map.
//!
//! `svd` keeps the first `rho` singular directions and gives each the weight 1: `U V^T`. Its value comes from a singular
//! value decomposition without a graph; its derivative is worked out here, because the decomposition's own divides by
//! differences of singular values that the product does not have: with `M = U^T dS V`,
//!
//! ```text
//! dP = U (M - M^T) / (s_i + s_j) V^T                                     within the kept directions
//!    + (1 - U U^T) dS V s^-1 V^T + U s^-1 U^T dS (1 - V V^T)             towards dropped ones, were they zero
//!    + what dropped ones with s_l > 0 change, over s_j^2 - s_l^2
//! ```

use pleach_base::rng::Key;
use tch::Tensor;

use super::Normalise;

/// Singular values below this share of the largest are no direction of the context.
const NO_DIRECTION: f64 = 1e-6;
/// Neighbouring singular values nearer than this leave the kept directions undefined.
const NO_GAP: f64 = 1e-7;
/// What is added below the root of the Frobenius norm, and to the largest singular value.
const EPS: f64 = 1e-6;
/// A smaller side from which on few directions are found by iteration rather than by a whole decomposition.
const LARGE: i64 = 256;

/// How states are normalised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) normalise: Normalise,
    /// The most directions that are kept.
    pub(crate) rank: i64,
}

/// Singular directions of every item: `u` `[n, q, k]`, `s` `[n, k]` falling, `v` `[n, r, k]`.
pub(crate) struct Directions {
    pub(crate) u: Tensor,
    pub(crate) s: Tensor,
    pub(crate) v: Tensor,
}

impl Rule {
    /// `states` `[n, q, r]` to the same shape. `train`: items whose kept directions are not defined become zero. `key` is
    /// that of the step and the site; large states are searched from a beginning drawn with it.
    pub(crate) fn run(&self, states: &Tensor, train: bool, key: Key) -> Tensor {
        match self.normalise {
            Normalise::Frobenius => {
                let square = states.square().sum_dim_intlist([-2i64, -1].as_slice(), true, states.kind());
                states / (square + EPS).sqrt()
            }
            Normalise::Spectral => {
                let Directions { u, v, .. } = whole(states);
                let (u, v) = (u.narrow(-1, 0, 1), v.narrow(-1, 0, 1));
                let largest = u.transpose(-2, -1).matmul(&states.matmul(&v)); // [n, 1, 1]
                states / (largest + EPS)
            }
            Normalise::Svd => self.directions(states, train, key),
        }
    }

    /// The kept directions without a graph: what an exported adapter is made of. Dropped ones are zero.
    pub(crate) fn kept(&self, states: &Tensor, key: Key) -> Directions {
        let (kept, _) = self.split(states, key);
        let kept_now = self.mask(&kept.s).unsqueeze(-2);
        Directions { u: kept.u * &kept_now, v: kept.v * &kept_now, s: kept.s }
    }

    /// The first directions, and those behind them as far as they are known.
    fn split(&self, states: &Tensor, key: Key) -> (Directions, Directions) {
        let size = states.size();
        let least = size[1].min(size[2]);
        let rank = self.rank.min(least);
        let all = if least >= LARGE && 4 * rank < least { leading(states, rank, key) } else { whole(states) };
        let cut = |from, n| Directions {
            u: all.u.narrow(-1, from, n),
            s: all.s.narrow(-1, from, n),
            v: all.v.narrow(-1, from, n),
        };
        let found = all.s.size()[1];
        (cut(0, rank), cut(rank, found - rank))
    }

    /// 1 where a singular value is a direction, `[n, k]`.
    fn mask(&self, s: &Tensor) -> Tensor {
        let floor = s.narrow(-1, 0, 1) * NO_DIRECTION;
        s.gt_tensor(&floor).to_kind(s.kind())
    }

    fn directions(&self, states: &Tensor, train: bool, key: Key) -> Tensor {
        let (kept, dropped) = self.split(states, key);
        let on = self.mask(&kept.s); // [n, k]
        let (u, v) = (kept.u * on.unsqueeze(-2), kept.v * on.unsqueeze(-2));
        let mut product = u.matmul(&v.transpose(-2, -1));
        if states.requires_grad() {
            // Zero, and carries the gradient.
            let change = states - states.detach();
            product += derivative(&change, &Directions { u, s: kept.s.shallow_clone(), v }, &on, &dropped);
        }
        if train {
            let defined = gaps(&kept.s, &on, &dropped.s).ge(NO_GAP).unsqueeze(-1).unsqueeze(-1);
            product = product.where_self(&defined, &product.zeros_like());
        }
        product
    }
}

/// The change of `U V^T` when the state changes by `d`; see the module.
fn derivative(d: &Tensor, kept: &Directions, on: &Tensor, dropped: &Directions) -> Tensor {
    let Directions { u, s, v } = kept;
    let (ut, vt) = (u.transpose(-2, -1), v.transpose(-2, -1));
    let (dv, utd) = (d.matmul(v), ut.matmul(d)); // [n, q, k], [n, k, r]
    let m = utd.matmul(v);
    let sums = s.unsqueeze(-1) + s.unsqueeze(-2);
    let within = (&m - m.transpose(-2, -1)) * over(&on.ones_like().unsqueeze(-1), &sums);
    let inverse = over(on, s); // [n, k]
    let left = (&dv - u.matmul(&m)) * inverse.unsqueeze(-2);
    let right = (&utd - m.matmul(&vt)) * inverse.unsqueeze(-1);
    let plain = u.matmul(&within).matmul(&vt) + left.matmul(&vt) + u.matmul(&right);
    if dropped.s.size()[1] == 0 {
        return plain;
    }
    let (sl, sj) = (dropped.s.unsqueeze(-1), s.unsqueeze(-2)); // [n, l, 1], [n, 1, k]
    let weight = over(&(&sl * on.unsqueeze(-2)), &(&sj * (sj.square() - sl.square())));
    let n1 = dropped.u.transpose(-2, -1).matmul(&dv); // [n, l, k]
    let n2 = utd.matmul(&dropped.v).transpose(-2, -1);
    let of_u = (&sl * &n1 + &sj * &n2) * &weight;
    let of_v = (&sl * &n2 + &sj * &n1) * &weight;
    plain
        + dropped.u.matmul(&of_u).matmul(&vt)
        + u.matmul(&of_v.transpose(-2, -1)).matmul(&dropped.v.transpose(-2, -1))
}

/// The quotient, 0 where there is nothing to divide by.
fn over(a: &Tensor, b: &Tensor) -> Tensor {
    let none = b.eq(0.0);
    (a / b.masked_fill(&none, 1.0)).masked_fill(&none, 0.0)
}

/// The smallest relative gap behind a kept singular value, `[n]`; large when there is none.
fn gaps(kept: &Tensor, on: &Tensor, dropped: &Tensor) -> Tensor {
    let all = Tensor::cat(&[kept, &dropped.narrow(-1, 0, dropped.size()[1].min(1))], -1);
    let pairs = all.size()[1] - 1;
    if pairs <= 0 {
        return kept.ones_like().amin([-1i64].as_slice(), false);
    }
    let (first, second) = (all.narrow(-1, 0, pairs), all.narrow(-1, 1, pairs));
    let gap = over(&(&first - &second), &first);
    let on = on.narrow(-1, 0, pairs);
    gap.where_self(&on.gt(0.0), &gap.ones_like()).amin([-1i64].as_slice(), false)
}

fn whole(states: &Tensor) -> Directions {
    let _no_grad = tch::no_grad_guard();
    let (u, s, v) = states.detach().svd(true, true);
    Directions { u, s, v }
}

/// The first directions by one power iteration from drawn ones (Halko, Martinsson and Tropp 2011).
fn leading(states: &Tensor, rank: i64, key: Key) -> Directions {
    let _no_grad = tch::no_grad_guard();
    let states = states.detach();
    let turned = states.transpose(-2, -1);
    let width = states.size()[2];
    let mut rng = key.named("svd").rng();
    let drawn: Vec<f32> = (0..width * rank).map(|_| rng.normal()).collect();
    let drawn = Tensor::from_slice(&drawn).reshape([width, rank]).to_kind(states.kind()).to_device(states.device());
    let orthonormal = |x: Tensor| Tensor::linalg_qr(&x, "reduced").0;
    let basis = orthonormal(states.matmul(&drawn));
    let basis = orthonormal(states.matmul(&orthonormal(turned.matmul(&basis)))); // [n, q, k]
    let (u, s, v) = basis.transpose(-2, -1).matmul(&states).svd(true, true);
    Directions { u: basis.matmul(&u), s, v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn drawn(shape: &[i64], seed: u64) -> Tensor {
        let mut rng = Key::seed(seed).rng();
        let numbers: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| f64::from(rng.normal())).collect();
        Tensor::from_slice(&numbers).reshape(shape).to_device(Device::Cpu)
    }

    fn rule(normalise: Normalise, rank: i64) -> Rule {
        Rule { normalise, rank }
    }

    fn off(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// Central differences, element by element, for square and oblong states, whole and truncated rank.
    #[test]
    fn derivatives_are_those_of_differences() {
        for (shape, rank) in [([1, 4, 4], 4), ([1, 3, 5], 3), ([2, 5, 3], 2), ([1, 4, 6], 2), ([1, 6, 4], 1)] {
            for normalise in [Normalise::Svd, Normalise::Frobenius, Normalise::Spectral] {
                let rule = rule(normalise, rank);
                let (states, weight) = (drawn(&shape, 3), drawn(&shape, 4));
                let value = |x: &Tensor| (rule.run(x, true, Key::seed(0)) * &weight).sum(Kind::Double);
                let leaf = states.copy().set_requires_grad(true);
                value(&leaf).backward();
                let found = leaf.grad().reshape([-1]);
                for at in 0..states.numel() as i64 {
                    let step = |by: f64| {
                        let moved = states.reshape([-1]).copy();
                        let _ = moved.get(at).g_add_scalar_(by);
                        value(&moved.reshape(shape)).double_value(&[])
                    };
                    let expected = (step(1e-5) - step(-1e-5)) / 2e-5;
                    let found = found.double_value(&[at]);
                    assert!((found - expected).abs() < 1e-6, "{normalise:?} {shape:?}: {found} not {expected}");
                }
            }
        }
    }

    #[test]
    fn kept_directions_weigh_one_and_others_nothing() {
        let states = drawn(&[2, 6, 5], 1);
        let s = rule(Normalise::Svd, 3).run(&states, true, Key::seed(0)).svd(true, true).1;
        let expected = Tensor::from_slice(&[1.0, 1.0, 1.0, 0.0, 0.0]).expand([2, 5], false);
        assert!(off(&s, &expected) < 1e-12, "{s:?}");
    }

    /// A context of two tokens has a state of rank two: nothing is made up for the third direction.
    #[test]
    fn directions_that_are_not_there_are_not_made_up() {
        let states = drawn(&[1, 6, 2], 1).matmul(&drawn(&[1, 2, 5], 2));
        let s = rule(Normalise::Svd, 3).run(&states, true, Key::seed(0)).svd(true, true).1;
        assert!(off(&s, &Tensor::from_slice(&[1.0, 1.0, 0.0, 0.0, 0.0]).unsqueeze(0)) < 1e-12, "{s:?}");
        let none = rule(Normalise::Svd, 3).run(&states.zeros_like(), true, Key::seed(0));
        assert_eq!(none.abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn equal_singular_values_give_no_map_in_training() {
        let states = Tensor::eye(4, (Kind::Double, Device::Cpu)).unsqueeze(0).set_requires_grad(true);
        let train = rule(Normalise::Svd, 2).run(&states, true, Key::seed(0));
        assert_eq!(train.abs().max().double_value(&[]), 0.0);
        train.sum(Kind::Double).backward();
        assert_eq!(states.grad().abs().max().double_value(&[]), 0.0);
        let used = rule(Normalise::Svd, 2).run(&states, false, Key::seed(0));
        assert!((used.svd(true, true).1.sum(Kind::Double).double_value(&[]) - 2.0).abs() < 1e-12);
    }

    /// Found from drawn directions they are those of the whole decomposition when there are no more of them.
    #[test]
    fn few_directions_of_a_large_state_are_found_by_iteration() {
        let states = drawn(&[2, 300, 7], 1).matmul(&drawn(&[2, 7, 280], 2));
        let found = rule(Normalise::Svd, 7).run(&states, true, Key::seed(5));
        let Directions { u, v, .. } = whole(&states);
        let expected = u.narrow(-1, 0, 7).matmul(&v.narrow(-1, 0, 7).transpose(-2, -1));
        assert!(off(&found, &expected) < 1e-9);
        assert!(off(&found, &rule(Normalise::Svd, 7).run(&states, true, Key::seed(5))) == 0.0);
    }
}
