//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019).
//!
//! The order of operations is that of PyTorch's single-tensor implementation, so that both round alike:
//! decay, first moment by linear interpolation, second moment, bias correction folded into step size and denominator.

use std::collections::BTreeMap;

use pleach_base::Result;
use pleach_spec::job::OptimizerSpec;
use tch::{Device, Kind, Tensor};

use super::{Optimizer, Span, cut, restore_moment};

/// Name of the counts among the moments.
const COUNTS: &str = "updates_of_each";

/// Adam with decoupled weight decay on every parameter.
#[derive(Debug)]
pub struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    updates: u64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Updates of each parameter, where some updates leave some alone.
    counts: Option<Tensor>,
}

impl AdamW {
    /// Zero moments for `n` parameters.
    #[must_use]
    pub fn new(spec: &OptimizerSpec, n: i64, device: Device) -> Self {
        let zeros = || Tensor::zeros([n], (Kind::Float, device));
        Self {
            betas: spec.betas,
            eps: spec.eps,
            weight_decay: spec.weight_decay,
            updates: 0,
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            counts: None,
        }
    }

    /// The same where some updates leave some parameters alone: each has its own bias correction.
    #[must_use]
    pub fn partial(spec: &OptimizerSpec, n: i64, device: Device) -> Self {
        Self { counts: Some(Tensor::zeros([n], (Kind::Float, device))), ..Self::new(spec, n, device) }
    }
}

/// What the moments are divided with.
struct Corrections {
    first: f64,
    root_second: f64,
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64, spans: &[Span]) {
        let [beta1, beta2] = self.betas;
        self.updates += 1;
        if self.exp_avg.kind() != params.kind() {
            // Moments have the precision of what they are of.
            self.exp_avg = self.exp_avg.to_kind(params.kind());
            self.exp_avg_sq = self.exp_avg_sq.to_kind(params.kind());
        }
        let t = self.updates as f64;
        let alike = Corrections { first: 1.0 - beta1.powf(t), root_second: (1.0 - beta2.powf(t)).sqrt() };
        let counts = self.counts.as_ref().unwrap_or(&self.exp_avg).shallow_clone();
        tch::no_grad(|| {
            for ([mut params, grads, mut first, mut second, mut counts], scale) in
                cut(spans, [params, grads, &self.exp_avg, &self.exp_avg_sq, &counts])
            {
                let lr = lr * scale;
                if self.weight_decay != 0.0 {
                    let _ = params.g_mul_scalar_(1.0 - lr * self.weight_decay);
                }
                let _ = first.lerp_(&grads, 1.0 - beta1);
                // `addcmul` computes (value * a) * b; the binding has no `value`: the product is spelt out in that order.
                let squared = (&grads * (1.0 - beta2)) * &grads;
                let _ = second.g_mul_scalar_(beta2).g_add_(&squared);
                // Likewise `addcdiv` computes (value * a) / b.
                let step = if self.counts.is_some() {
                    let counts = counts.g_add_scalar_(1.0).to_kind(Kind::Double);
                    let one_minus = |beta: f64| -> Tensor { 1.0 - Tensor::from(beta).pow(&counts) };
                    let rounded = |tensor: &Tensor| tensor.to_kind(params.kind());
                    let denominator = (second.sqrt() / rounded(&one_minus(beta2).sqrt())).g_add_scalar_(self.eps);
                    first * rounded(&(one_minus(beta1).reciprocal() * -lr)) / denominator
                } else {
                    let denominator = (second.sqrt() / alike.root_second).g_add_scalar_(self.eps);
                    (first * -(lr / alike.first)) / denominator
                };
                let _ = params.g_add_(&step);
            }
        });
    }

    fn reset(&mut self) {
        self.updates = 0;
        for moment in [Some(&mut self.exp_avg), Some(&mut self.exp_avg_sq), self.counts.as_mut()].into_iter().flatten()
        {
            let _ = moment.zero_();
        }
    }

    fn updates(&self) -> u64 {
        self.updates
    }

    fn moments(&self) -> BTreeMap<&'static str, Tensor> {
        let mut all = BTreeMap::from([
            ("exp_avg", self.exp_avg.shallow_clone()),
            ("exp_avg_sq", self.exp_avg_sq.shallow_clone()),
        ]);
        all.extend(self.counts.iter().map(|counts| (COUNTS, counts.shallow_clone())));
        all
    }

    fn restore(&mut self, updates: u64, moments: &BTreeMap<String, Tensor>) -> Result<()> {
        restore_moment(&mut self.exp_avg, "exp_avg", moments)?;
        restore_moment(&mut self.exp_avg_sq, "exp_avg_sq", moments)?;
        if let Some(counts) = &mut self.counts {
            restore_moment(counts, COUNTS, moments)?;
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_span(length: i64) -> [Span; 1] {
        [Span { length, scale: 1.0, moves: true }]
    }

    /// A span that begins to move later, or pauses, is an optimiser of its own that was not called meanwhile.
    #[test]
    fn a_span_that_is_left_alone_counts_its_own_updates() {
        let spec = OptimizerSpec { weight_decay: 0.1, ..OptimizerSpec::default() };
        let (grads, start) = (Tensor::from_slice(&[0.3f32, -0.7, 0.2]), Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
        let mut together = AdamW::partial(&spec, 3, Device::Cpu);
        let (mut first, mut rest) = (AdamW::new(&spec, 1, Device::Cpu), AdamW::new(&spec, 2, Device::Cpu));
        let (mut all, mut a, mut b) = (start.copy(), start.narrow(0, 0, 1).copy(), start.narrow(0, 1, 2).copy());
        for (moves_a, moves_b) in [(true, false), (true, true), (false, true), (true, true)] {
            let spans =
                [Span { length: 1, scale: 1.0, moves: moves_a }, Span { length: 2, scale: 1.0, moves: moves_b }];
            together.step(&mut all, &grads, 0.01, &spans);
            if moves_a {
                first.step(&mut a, &grads.narrow(0, 0, 1), 0.01, &whole_span(1));
            }
            if moves_b {
                rest.step(&mut b, &grads.narrow(0, 1, 2), 0.01, &whole_span(2));
            }
        }
        assert!(all.equal(&Tensor::cat(&[a, b], 0)));
    }

    #[test]
    fn a_reset_optimiser_is_a_new_one() {
        let grads = Tensor::from_slice(&[0.3f32, -0.7]);
        let spec = OptimizerSpec::default();
        let (mut used, mut new) = (AdamW::partial(&spec, 2, Device::Cpu), AdamW::partial(&spec, 2, Device::Cpu));
        used.step(&mut Tensor::from_slice(&[1.0f32, 2.0]), &grads, 0.1, &whole_span(2));
        used.reset();
        let (mut a, mut b) = (Tensor::from_slice(&[5.0f32, 6.0]), Tensor::from_slice(&[5.0f32, 6.0]));
        used.step(&mut a, &grads, 0.1, &whole_span(2));
        new.step(&mut b, &grads, 0.1, &whole_span(2));
        assert!(a.equal(&b) && used.updates() == 1);
    }

    /// Two tensors with rates of their own are two optimisers side by side.
    #[test]
    fn each_span_has_its_own_rate() {
        let spec = OptimizerSpec { weight_decay: 0.1, ..OptimizerSpec::default() };
        let (grads, start) = (Tensor::from_slice(&[0.3f32, -0.7, 0.2]), Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
        let (mut together, mut first, mut rest) =
            (AdamW::new(&spec, 3, Device::Cpu), AdamW::new(&spec, 1, Device::Cpu), AdamW::new(&spec, 2, Device::Cpu));
        let (mut all, mut a, mut b) = (start.copy(), start.narrow(0, 0, 1).copy(), start.narrow(0, 1, 2).copy());
        for _ in 0..3 {
            together.step(&mut all, &grads, 0.01, &Span::of([(1, 16.0), (1, 1.0), (1, 1.0)]));
            first.step(&mut a, &grads.narrow(0, 0, 1), 0.16, &whole_span(1));
            rest.step(&mut b, &grads.narrow(0, 1, 2), 0.01, &whole_span(2));
        }
        assert!(all.equal(&Tensor::cat(&[a, b], 0)));
        assert_eq!(Span::of([(1, 16.0), (1, 1.0), (1, 1.0)]).len(), 2, "neighbours with one rate are one span");
    }

    /// Three steps on two numbers, computed by hand in double precision from the published algorithm.
    #[test]
    fn three_steps_follow_the_published_algorithm() {
        let spec = OptimizerSpec { lr: 0.1, weight_decay: 0.01, ..OptimizerSpec::default() };
        let mut optimizer = AdamW::new(&spec, 2, Device::Cpu);
        let mut params = Tensor::from_slice(&[1.0f32, -2.0]);
        let (mut theta, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
        for (t, grads) in [[0.5f64, -0.25], [0.1, 0.4], [-3.0, 0.0]].iter().enumerate() {
            optimizer.step(&mut params, &Tensor::from_slice(&grads.map(|g| g as f32)), 0.1, &whole_span(2));
            for i in 0..2 {
                theta[i] -= 0.1 * 0.01 * theta[i];
                m[i] = 0.9 * m[i] + 0.1 * grads[i];
                v[i] = 0.999 * v[i] + 0.001 * grads[i] * grads[i];
                let m_hat = m[i] / (1.0 - 0.9f64.powi(t as i32 + 1));
                let v_hat = v[i] / (1.0 - 0.999f64.powi(t as i32 + 1));
                theta[i] -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (i, expected) in theta.iter().enumerate() {
            let got = params.double_value(&[i as i64]);
            assert!((got - expected).abs() < 1e-5, "parameter {i}: {got} instead of {expected}");
        }
        assert_eq!(optimizer.updates(), 3);
    }

    #[test]
    fn restored_moments_continue_with_the_same_bits() {
        let spec = OptimizerSpec { weight_decay: 0.01, ..OptimizerSpec::default() };
        let grads = Tensor::from_slice(&[0.3f32, -0.7, 1e-4]);
        let (mut whole, mut params) = (AdamW::new(&spec, 3, Device::Cpu), Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
        whole.step(&mut params, &grads, 0.01, &whole_span(3));
        let mut resumed = AdamW::new(&spec, 3, Device::Cpu);
        let stored = whole.moments().into_iter().map(|(name, moment)| (name.to_owned(), moment.copy())).collect();
        resumed.restore(whole.updates(), &stored).unwrap();
        let mut copy = params.copy();
        whole.step(&mut params, &grads, 0.01, &whole_span(3));
        resumed.step(&mut copy, &grads, 0.01, &whole_span(3));
        assert!(params.equal(&copy));
    }

    #[test]
    fn moments_of_another_adapter_are_refused() {
        let mut optimizer = AdamW::new(&OptimizerSpec::default(), 3, Device::Cpu);
        let other = BTreeMap::from([
            ("exp_avg".to_owned(), Tensor::zeros([2], (Kind::Float, Device::Cpu))),
            ("exp_avg_sq".to_owned(), Tensor::zeros([2], (Kind::Float, Device::Cpu))),
        ]);
        assert_eq!(optimizer.restore(1, &other).unwrap_err().code().id, "PL0404");
    }
}
