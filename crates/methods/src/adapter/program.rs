//! What a method says about the course of a training: its phases, and the forward passes of a step.

/// A step, as a method is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Optimiser steps done, this one included.
    pub step: u64,
    /// Steps of the whole task.
    pub total: u64,
    /// Number of the phase that it is in.
    pub phase: usize,
    /// Steps of the phase done, this one included.
    pub phase_step: u64,
    /// Steps of the phase.
    pub phase_total: u64,
}

impl StepInfo {
    /// Step `step` (from 1) of a training of `total` steps in phases of these lengths. Steps beyond their sum are in the
    /// last.
    #[must_use]
    pub fn new(step: u64, total: u64, phases: &[u64]) -> Self {
        let mut before = 0;
        for (phase, length) in phases.iter().enumerate() {
            if step <= before + length || phase + 1 == phases.len() {
                return Self { step, total, phase, phase_step: step - before, phase_total: *length };
            }
            before += length;
        }
        Self { step, total, phase: 0, phase_step: step, phase_total: total }
    }

    /// Whether it is the last step of its phase.
    #[must_use]
    pub fn ends_phase(&self) -> bool {
        self.phase_step == self.phase_total
    }
}

/// The forward passes of every training batch: hooks tell them apart by the number of the pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Passes {
    /// One entry a pass: the weight of its loss.
    pub weights: Vec<f64>,
    /// Weight of the symmetric Kullback-Leibler divergence between the first two passes, each taken towards the other
    /// without a gradient: the mean of both directions, averaged over what the loss counts.
    pub symmetric_kl: f64,
}

impl Default for Passes {
    fn default() -> Self {
        Self { weights: vec![1.0], symmetric_kl: 0.0 }
    }
}

/// What binds two passes: for each row of logits `[n, classes]` the mean of `KL(b || a)` and `KL(a || b)`, the first named
/// distribution taken without a gradient. `[n]`.
#[cfg(feature = "torch")]
pub fn symmetric_kl(a: &tch::Tensor, b: &tch::Tensor) -> tch::Tensor {
    let logs = |logits: &tch::Tensor| logits.log_softmax(-1, None);
    let (a, b) = (logs(a), logs(b));
    let towards = |target: &tch::Tensor, other: &tch::Tensor| {
        let target = target.detach();
        (target.exp() * (&target - other)).sum_dim_intlist(-1, false, None)
    };
    (towards(&b, &a) + towards(&a, &b)) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "torch")]
    #[test]
    fn equal_passes_are_bound_by_nothing_and_different_ones_pull_at_each_other() {
        let a = tch::Tensor::from_slice(&[1.0f64, -0.5, 0.25, 2.0]).reshape([2, 2]).set_requires_grad(true);
        assert!(symmetric_kl(&a, &a).abs().max().double_value(&[]) < 1e-12);
        let b = tch::Tensor::from_slice(&[0.5f64, 0.5, 0.25, 2.0]).reshape([2, 2]);
        let apart = symmetric_kl(&a, &b);
        // p = (0.817574, 0.182426), q = (0.5, 0.5): the mean of both divergences of the first row.
        assert!((apart.double_value(&[0]) - 0.238_180_86).abs() < 1e-6, "{}", apart.double_value(&[0]));
        assert!(apart.double_value(&[1]).abs() < 1e-12);
        apart.sum(tch::Kind::Double).backward();
        // d/da of KL(q || p) / 2 is (p - q) / 2; the other direction has its target detached and b is constant.
        assert!((a.grad().double_value(&[0, 0]) - (0.817_574_5 - 0.5) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn steps_count_within_their_phase() {
        let at = |step| {
            let info = StepInfo::new(step, 7, &[3, 0, 4]);
            (info.phase, info.phase_step, info.phase_total, info.ends_phase())
        };
        assert_eq!(at(1), (0, 1, 3, false));
        assert_eq!(at(3), (0, 3, 3, true));
        assert_eq!(at(4), (2, 1, 4, false), "an empty phase is passed over");
        assert_eq!(at(7), (2, 4, 4, true));
        assert_eq!(at(9).0, 2);
    }
}
