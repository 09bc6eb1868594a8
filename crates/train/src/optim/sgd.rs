//! Stochastic gradient descent with momentum, in PyTorch's form: the first gradient starts the momentum buffer, and
//! weight decay is added to the gradient (coupled), as there.

use std::collections::BTreeMap;

use pleach_base::Result;
use pleach_spec::job::OptimizerSpec;
use tch::{Device, Kind, Tensor};

use super::{Optimizer, Span, cut, restore_moment};

/// Gradient descent with momentum.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    updates: u64,
    /// Present when momentum is used.
    buffer: Option<Tensor>,
}

impl Sgd {
    /// No momentum yet, for `n` parameters.
    #[must_use]
    pub fn new(spec: &OptimizerSpec, n: i64, device: Device) -> Self {
        let buffer = (spec.momentum != 0.0).then(|| Tensor::zeros([n], (Kind::Float, device)));
        Self { momentum: spec.momentum, weight_decay: spec.weight_decay, updates: 0, buffer }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64, spans: &[Span]) {
        tch::no_grad(|| {
            // Without momentum nothing is remembered: any tensor stands for the buffer.
            let buffer = self.buffer.as_ref().unwrap_or(grads).shallow_clone();
            for ([mut params, grads, mut buffer], scale) in cut(spans, [params, grads, &buffer]) {
                let mut direction = grads;
                if self.weight_decay != 0.0 {
                    direction = &direction + &params * self.weight_decay;
                }
                if self.buffer.is_some() {
                    // The buffer is zero before the first update, so this is also PyTorch's "first gradient as it is".
                    direction = buffer.g_mul_scalar_(self.momentum).g_add_(&direction);
                }
                let _ = params.g_add_(&(direction * -(lr * scale)));
            }
        });
        self.updates += 1;
    }

    fn reset(&mut self) {
        self.updates = 0;
        let _ = self.buffer.as_mut().map(Tensor::zero_);
    }

    fn updates(&self) -> u64 {
        self.updates
    }

    fn moments(&self) -> BTreeMap<&'static str, Tensor> {
        self.buffer.iter().map(|buffer| ("momentum_buffer", buffer.shallow_clone())).collect()
    }

    fn restore(&mut self, updates: u64, moments: &BTreeMap<String, Tensor>) -> Result<()> {
        if let Some(buffer) = &mut self.buffer {
            restore_moment(buffer, "momentum_buffer", moments)?;
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_spec::job::OptimizerName;

    #[test]
    fn momentum_and_decay_follow_the_published_algorithm() {
        let spec =
            OptimizerSpec { name: OptimizerName::Sgd, momentum: 0.9, weight_decay: 0.1, ..OptimizerSpec::default() };
        let mut optimizer = Sgd::new(&spec, 1, Device::Cpu);
        let mut params = Tensor::from_slice(&[2.0f32]);
        let (mut theta, mut buffer) = (2.0f64, None::<f64>);
        for grad in [1.0f64, -0.5, 0.25] {
            let original = Tensor::from_slice(&[grad as f32]);
            optimizer.step(&mut params, &original, 0.1, &[Span { length: 1, scale: 1.0, moves: true }]);
            assert_eq!(original.double_value(&[0]), grad, "the gradient is not changed");
            let direction = grad + 0.1 * theta;
            let next = buffer.map_or(direction, |b| 0.9 * b + direction);
            buffer = Some(next);
            theta -= 0.1 * next;
        }
        assert!((params.double_value(&[0]) - theta).abs() < 1e-6);
    }

    #[test]
    fn without_momentum_there_is_no_state() {
        let optimizer =
            Sgd::new(&OptimizerSpec { name: OptimizerName::Sgd, ..OptimizerSpec::default() }, 4, Device::Cpu);
        assert!(optimizer.moments().is_empty());
    }
}
