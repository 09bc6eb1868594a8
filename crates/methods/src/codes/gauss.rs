//! Distribution function and quantiles of the standard normal distribution, in double precision.

use std::f64::consts::{PI, SQRT_2};

/// Where the density is 0 for all that doubles can tell of its integral.
const FAR: f64 = 9.0;

/// Density at `x`.
pub(super) fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// Probability below `x`: `1/2 + density(x) (x + x^3/3 + x^5/(3 5) + ..)` (Marsaglia 2004), whose terms have one sign.
pub(super) fn below(x: f64) -> f64 {
    if x.abs() > FAR {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > f64::EPSILON * sum.abs() * 0.1 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + density(x) * sum
}

/// The `x` with probability `p` below it, `0 < p < 1`; `near` is a guess.
pub(super) fn quantile(p: f64, near: f64) -> f64 {
    // On the right half the function is concave: Newton's steps go up to the root from below and never past it, and from
    // above they may only fall too far down.
    if p < 0.5 {
        return -quantile(1.0 - p, -near);
    }
    let mut x = near.clamp(0.0, 3.0 * SQRT_2);
    for _ in 0..100 {
        let step = (p - below(x)) / density(x);
        let next = (x + step).max(0.0);
        if (next - x).abs() <= f64::EPSILON * x.max(1.0) {
            return next;
        }
        x = next;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        for (x, p) in [(0.0, 0.5), (1.0, 0.841_344_746_068_542_9), (-1.959_963_984_540_054, 0.025), (12.0, 1.0)] {
            assert!((below(x) - p).abs() < 1e-15, "{x}: {}", below(x));
        }
        for (p, x) in [(0.75, 0.674_489_750_196_081_7), (0.5, 0.0), (0.001, -3.090_232_306_167_813)] {
            assert!((quantile(p, 0.3) - x).abs() < 1e-12, "{p}: {}", quantile(p, 0.3));
        }
    }

    #[test]
    fn any_guess_leads_to_the_same_quantile() {
        for near in [-2.0, 0.0, 0.5, 3.9] {
            assert!((quantile(0.97, near) - quantile(0.97, 1.0)).abs() < 1e-14, "{near}");
        }
    }
}
