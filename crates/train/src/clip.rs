//! Clipping by the total norm of the reduced gradient.

use tch::{Kind, Tensor};

/// Scales `grads` (`[n]`, already reduced over all ranks) so that its Euclidean norm is at most `max_norm`, and
/// returns the norm before that. `max_norm` 0 only measures. The formula is that of PyTorch's `clip_grad_norm_`.
pub fn clip(grads: &mut Tensor, max_norm: f64) -> f64 {
    let norm = tch::no_grad(|| grads.norm().double_value(&[]));
    if max_norm > 0.0 {
        let scale = (max_norm / (norm + 1e-6)).min(1.0);
        if scale < 1.0 {
            let _ = tch::no_grad(|| grads.g_mul_scalar_(scale));
        }
    }
    norm
}

/// Whether every element is finite.
#[must_use]
pub fn is_finite(values: &Tensor) -> bool {
    tch::no_grad(|| values.isfinite().all().to_kind(Kind::Int64).int64_value(&[]) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_left_alone() {
        let mut long = Tensor::from_slice(&[3.0f32, 4.0]);
        assert_eq!(clip(&mut long, 1.0), 5.0);
        assert!((long.norm().double_value(&[]) - 1.0).abs() < 1e-6);
        let mut short = Tensor::from_slice(&[0.3f32, 0.4]);
        clip(&mut short, 1.0);
        assert!(short.equal(&Tensor::from_slice(&[0.3f32, 0.4])));
        let mut measured = Tensor::from_slice(&[30.0f32, 40.0]);
        assert_eq!(clip(&mut measured, 0.0), 50.0);
        assert_eq!(measured.double_value(&[1]), 40.0);
    }

    #[test]
    fn one_bad_element_is_seen() {
        assert!(is_finite(&Tensor::from_slice(&[1.0f32, -2.0])));
        assert!(!is_finite(&Tensor::from_slice(&[1.0f32, f32::NAN])));
        assert!(!is_finite(&Tensor::from_slice(&[f32::NEG_INFINITY, 0.0])));
    }
}
