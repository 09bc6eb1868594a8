//! An adapter of every block, as it is at a forward pass.

use pleach_base::Result;
use tch::Tensor;

use crate::adapter::common::{Activation, Branch};
use crate::continual::mos::{mean_of, merged};
use crate::reference::timm::Around;

/// Names of a block's tensors, in the order in which they are kept.
pub(super) const NAMES: [&str; 4] = ["down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias"];

/// An adapter: the tensors of every block.
pub(super) struct Adapter(pub(super) Vec<[Tensor; 4]>);

impl Adapter {
    /// The tensors that `get` gives for a block and a name.
    pub(super) fn read(depth: usize, get: &dyn Fn(usize, &str) -> Result<Tensor>) -> Result<Self> {
        let block = |index: usize| {
            let [a, b, c, d] = NAMES.map(|name| get(index, name));
            Ok([a?, b?, c?, d?])
        };
        Ok(Self((0..depth).map(block).collect::<Result<_>>()?))
    }

    pub(super) fn copy(&self) -> Self {
        Self(self.0.iter().map(|block| block.each_ref().map(|tensor| tensor.detach().copy())).collect())
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter().flatten()
    }

    /// Draws it towards the mean of `older`, in place; nothing without any.
    pub(super) fn merge(&self, older: &[Self], alpha: f64) {
        let _no_grad = tch::no_grad_guard();
        for (index, tensor) in self.tensors().enumerate() {
            let olds: Vec<_> =
                older.iter().filter_map(|old| old.tensors().nth(index)).map(Tensor::shallow_clone).collect();
            if let Some(mean) = mean_of(&olds) {
                tensor.shallow_clone().copy_(&merged(tensor, &mean, alpha));
            }
        }
    }

    /// Its tensors for one forward pass in which every block first merges the adapters of all blocks: what each block
    /// sees, with gradients to the tensors themselves, which end as merged as the last block sees them.
    pub(super) fn merging_pass(&self, older: &[Self], alpha: f64) -> Self {
        let mut seen = Vec::with_capacity(self.0.len());
        for block in &self.0 {
            self.merge(older, alpha);
            seen.push(block.each_ref().map(|tensor| tensor.detach().copy()));
        }
        let tied = |(leaves, seen): (&[Tensor; 4], [Tensor; 4])| {
            let mut seen = seen.into_iter();
            leaves.each_ref().map(|leaf| match seen.next() {
                Some(seen) => leaf + (seen - leaf.detach()),
                None => leaf.shallow_clone(),
            })
        };
        Self(self.0.iter().zip(seen).map(tied).collect())
    }

    /// The same tensors.
    pub(super) fn alias(&self) -> Self {
        Self(self.0.iter().map(|block| block.each_ref().map(Tensor::shallow_clone)).collect())
    }
}

/// An adapter in a pass.
pub(super) struct InPass {
    pub(super) adapter: Adapter,
    pub(super) scale: f64,
    /// Dropout by block.
    pub(super) keep: Option<Tensor>,
}

impl Around for InPass {
    fn mlp(&self, block: usize, h: &Tensor, u: &Tensor, mlp: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        let [down, down_bias, up, up_bias] = self.adapter.0[block].each_ref().map(Tensor::shallow_clone);
        let (down, up) = ((down, Some(down_bias)), (up, Some(up_bias)));
        let beside = Branch { down, up, activation: Activation::Relu, scale: self.scale };
        let keep = self.keep.as_ref().map(|keep| keep.get(block as i64));
        mlp(u) + beside.run(h, keep.as_ref())
    }
}
