//! The gate: what a checkpoint must satisfy before it may be given to others. Training goes on whatever it says.
//!
//! A tensor is judged once it has had a non-zero gradient at a non-zero learning rate: before that, zero or unchanged
//! is what it should be.

use pleach_base::{Result, code};
use pleach_store::Gate;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::flat::FlatLayout;

/// Watches which tensors were trained, and judges them.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    /// sha256 of each tensor before the first step.
    initial: Vec<[u8; 32]>,
    judged: Vec<bool>,
}

impl Gatekeeper {
    /// Remembers `params` (`[n]`) as the state before the first step.
    #[must_use]
    pub(crate) fn new(layout: &FlatLayout, params: &Tensor) -> Self {
        let initial = layout.pieces(params).map(|(_, piece)| sha256(&piece)).collect();
        Self { initial, judged: vec![false; layout.len()] }
    }

    /// Notes which tensors get a non-zero gradient from `grads` (`[n]`) at rate `lr`.
    pub(crate) fn note(&mut self, layout: &FlatLayout, grads: &Tensor, lr: f64) {
        if lr == 0.0 || self.judged.iter().all(|judged| *judged) {
            return;
        }
        for (index, (_, grad)) in layout.pieces(grads).enumerate() {
            if !self.judged[index] {
                self.judged[index] = grad.count_nonzero(None).int64_value(&[]) != 0;
            }
        }
    }

    /// Which tensors are judged, in layout order, for the checkpoint.
    #[must_use]
    pub(crate) fn judged(&self) -> &[bool] {
        &self.judged
    }

    /// Judges nothing until it has had another gradient: the method may have put tensors back to where they began.
    pub(crate) fn forget(&mut self) {
        self.judged.fill(false);
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when it has another number of tensors.
    pub(crate) fn restore(&mut self, judged: Vec<bool>) -> Result<()> {
        if judged.len() != self.judged.len() {
            let (found, expected) = (judged.len(), self.judged.len());
            let message = format!("trainer_state.safetensors: `judged` has {found} tensors, the adapter {expected}");
            return Err(code::ADAPTER_FORMAT.error(message));
        }
        self.judged = judged;
        Ok(())
    }

    /// Judges `params` (`[n]`).
    #[must_use]
    pub(crate) fn judge(&self, layout: &FlatLayout, params: &Tensor) -> Gate {
        let mut findings = Vec::new();
        for (index, (name, tensor)) in layout.pieces(params).enumerate() {
            if tensor.isfinite().all().to_kind(Kind::Int64).int64_value(&[]) == 0 {
                findings.push(format!("{name} holds a value that is not finite"));
            } else if !self.judged[index] {
                continue;
            } else if tensor.count_nonzero(None).int64_value(&[]) == 0 {
                findings.push(format!("{name} had gradients and is all zero"));
            } else if sha256(&tensor) == self.initial[index] {
                findings.push(format!("{name} had gradients and is as it was before training"));
            }
        }
        if findings.is_empty() && !self.judged.contains(&true) {
            findings.push("no tensor has had a gradient at a non-zero learning rate yet".to_owned());
        }
        Gate { publishable: findings.is_empty(), findings }
    }
}

fn sha256(tensor: &Tensor) -> [u8; 32] {
    Sha256::digest(crate::flat::bytes_of(tensor)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> FlatLayout {
        FlatLayout::new(vec![("a".into(), vec![2]), ("b".into(), vec![1, 2])])
    }

    fn tensor(values: [f32; 4]) -> Tensor {
        Tensor::from_slice(&values)
    }

    #[test]
    fn a_trained_adapter_passes_and_an_untouched_one_waits() {
        let mut gate = Gatekeeper::new(&layout(), &tensor([1.0, 2.0, 0.0, 0.0]));
        assert!(!gate.judge(&layout(), &tensor([1.0, 2.0, 0.0, 0.0])).publishable, "nothing was trained");
        gate.note(&layout(), &tensor([1.0; 4]), 0.0);
        assert!(!gate.judged().contains(&true), "a rate of zero trains nothing");
        gate.note(&layout(), &tensor([0.1, 0.0, 0.0, 0.0]), 0.1);
        let passed = gate.judge(&layout(), &tensor([1.1, 2.0, 0.0, 0.0]));
        assert!(passed.publishable, "b had no gradient, so zero is right: {:?}", passed.findings);
        gate.forget();
        assert!(!gate.judge(&layout(), &tensor([1.1, 2.0, 0.0, 0.0])).publishable, "a new part of the training");
    }

    #[test]
    fn each_fault_is_named() {
        let mut gate = Gatekeeper::new(&layout(), &tensor([1.0, 2.0, 0.0, 0.0]));
        gate.note(&layout(), &tensor([1.0; 4]), 0.1);
        for (params, finding) in [
            ([1.0, 2.0, 1.0, 1.0], "a had gradients and is as it was before training"),
            ([1.5, 2.0, 0.0, 0.0], "b had gradients and is all zero"),
            ([1.5, f32::NAN, 1.0, 1.0], "a holds a value that is not finite"),
        ] {
            let judged = gate.judge(&layout(), &tensor(params));
            assert!(!judged.publishable && judged.findings == [finding], "{:?}", judged.findings);
        }
    }
}
