//! Trainable tensors in a fixed order.

use indexmap::IndexMap;
use pleach_base::{Result, code};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::bytes::to_le_bytes;

/// Trainable float32 leaves in a fixed order: that of the plan. Names are the keys of `adapter_model.safetensors`.
///
/// Everything that ranks exchange or agree on goes in this order, never in that of a hash map.
#[derive(Debug, Default)]
pub struct ParamTree {
    leaves: IndexMap<String, Tensor>,
}

impl ParamTree {
    /// Adds a leaf that requires a gradient, with a copy of `value` as float32.
    ///
    /// # Errors
    /// `INTERNAL` when the name is taken.
    pub fn insert(&mut self, name: impl Into<String>, value: &Tensor) -> Result<()> {
        let name = name.into();
        let leaf = value.detach().to_kind(Kind::Float).copy().set_requires_grad(true);
        match self.leaves.insert(name.clone(), leaf) {
            None => Ok(()),
            Some(_) => Err(code::INTERNAL.error(format!("parameter `{name}` is there twice"))),
        }
    }

    /// The leaf of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.leaves.get(name)
    }

    /// Names and leaves in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.leaves.iter().map(|(name, leaf)| (name.as_str(), leaf))
    }

    /// The number of leaves.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The number of scalars.
    #[must_use]
    pub fn numel(&self) -> usize {
        self.leaves.values().map(Tensor::numel).sum()
    }

    /// A tree of new leaves over the same memory: an update of one is seen by the other, gradients are apart. One
    /// adapter that runs as several groups (one a lane) uses one of these for each.
    #[must_use]
    pub fn alias(&self) -> Self {
        let leaf = |(name, leaf): (&String, &Tensor)| (name.clone(), leaf.detach().set_requires_grad(true));
        Self { leaves: self.leaves.iter().map(leaf).collect() }
    }

    /// All values as one vector `[numel]`, a copy.
    pub fn flatten(&self) -> Tensor {
        let parts: Vec<_> = self.leaves.values().map(|leaf| leaf.detach().reshape([-1])).collect();
        flat(&parts)
    }

    /// All gradients as one vector `[numel]`, a copy; zeros where a leaf got none.
    pub fn flatten_grads(&self) -> Tensor {
        let parts: Vec<_> = self
            .leaves
            .values()
            .map(|leaf| {
                let grad = leaf.grad();
                if grad.defined() { grad.detach().reshape([-1]) } else { leaf.zeros_like().detach().reshape([-1]) }
            })
            .collect();
        flat(&parts)
    }

    /// Writes the values of a vector `[numel]` into the leaves, in place.
    ///
    /// # Errors
    /// `INTERNAL` when the sizes differ.
    pub fn unflatten(&self, values: &Tensor) -> Result<()> {
        if values.numel() != self.numel() {
            let (found, wanted) = (values.numel(), self.numel());
            return Err(code::INTERNAL.error(format!("flat vector has {found} values, the parameters are {wanted}")));
        }
        let values = values.detach().reshape([-1]);
        let mut start = 0;
        for leaf in self.leaves.values() {
            let length = leaf.numel() as i64;
            leaf.detach().copy_(&values.narrow(0, start, length).view_as(leaf));
            start += length;
        }
        Ok(())
    }

    /// Forgets all gradients.
    pub fn zero_grads(&self) {
        for leaf in self.leaves.values() {
            leaf.shallow_clone().zero_grad();
        }
    }

    /// SHA-256 over names, shapes and bytes in order, in hexadecimal: equal on all ranks or something is wrong.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, leaf) in &self.leaves {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            for size in leaf.size() {
                hash.update(size.to_le_bytes());
            }
            hash.update(to_le_bytes(leaf).bytes);
        }
        hex::encode(hash.finalize())
    }
}

fn flat(parts: &[Tensor]) -> Tensor {
    if parts.is_empty() { Tensor::zeros([0], (Kind::Float, Device::Cpu)) } else { Tensor::cat(parts, 0) }
}

#[cfg(test)]
mod tests;
