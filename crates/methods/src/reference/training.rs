//! Trainings among the recordings: the page knows the loss, the caller lends the optimiser.

use pleach_base::Result;
use pleach_spec::job::OptimizerSpec;
use tch::{Kind, Tensor};

/// Makes optimisers: those of the trainer itself.
pub trait Train {
    /// An optimiser of `n` numbers.
    fn optimizer(&self, spec: &OptimizerSpec, n: i64) -> Box<dyn Update>;
}

/// An optimiser over one flat buffer.
pub trait Update {
    /// Updates `params` `[n]` by `grads` `[n]`.
    fn step(&mut self, params: &mut Tensor, grads: &Tensor, lr: f64);
}

/// The leaves of a training, updated together.
pub(super) struct Leaves {
    leaves: Vec<Tensor>,
    update: Box<dyn Update>,
}

impl Leaves {
    pub(super) fn new(leaves: Vec<Tensor>, spec: &OptimizerSpec, train: &dyn Train) -> Self {
        let n = leaves.iter().map(|leaf| leaf.numel() as i64).sum();
        Self { leaves, update: train.optimizer(spec, n) }
    }

    /// One update by the gradient of `loss`, whose value is given back.
    pub(super) fn step(&mut self, loss: &Tensor, lr: f64) -> Result<Tensor> {
        loss.backward();
        self.update(lr);
        Ok(loss.detach().to_kind(Kind::Double))
    }

    /// One update by the gradients that lie on the leaves, which are zero afterwards.
    pub(super) fn update(&mut self, lr: f64) {
        let _no_grad = tch::no_grad_guard();
        let flat = |tensors: Vec<Tensor>| Tensor::cat(&tensors, 0);
        let mut params = flat(self.leaves.iter().map(|leaf| leaf.flatten(0, -1)).collect());
        let grads = flat(self.leaves.iter().map(|leaf| gradient(leaf).flatten(0, -1)).collect());
        self.update.step(&mut params, &grads, lr);
        let mut at = 0;
        for leaf in &self.leaves {
            let n = leaf.numel() as i64;
            leaf.shallow_clone().copy_(&params.narrow(0, at, n).reshape(leaf.size()));
            at += n;
        }
        self.forget();
    }

    /// Sets the gradients to zero without an update.
    pub(super) fn forget(&self) {
        for leaf in &self.leaves {
            let mut grad = leaf.grad();
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
    }
}

/// The gradient of a leaf; zero when nothing depended on it.
pub(super) fn gradient(leaf: &Tensor) -> Tensor {
    let grad = leaf.grad();
    if grad.defined() { grad } else { leaf.zeros_like() }
}
