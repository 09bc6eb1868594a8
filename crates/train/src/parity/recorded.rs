//! The optimisers that recordings of single methods are trained with.

use pleach_methods::reference::{Train, Update};
use pleach_spec::job::OptimizerSpec;
use tch::{Device, Tensor};

use crate::optim::{self, Optimizer, Span};

/// Lends the trainer's own optimisers.
pub(super) struct Own;

struct Lent(Box<dyn Optimizer>);

impl Train for Own {
    fn optimizer(&self, spec: &OptimizerSpec, n: i64) -> Box<dyn Update> {
        Box::new(Lent(optim::build(spec, n, Device::Cpu, false)))
    }
}

impl Update for Lent {
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64) {
        let spans = Span::of([(params.numel() as i64, 1.0)]);
        self.0.step(params, grads, lr, &spans);
    }
}
