//! A sparse fine-tuning apart from its model: differences by tensor, and tensors that replace the model's.

use std::collections::BTreeMap;

use pleach_base::{Result, code};
use tch::Tensor;

use super::gaps::Gaps;

/// What a training left.
#[derive(Debug, Default)]
pub(crate) struct Sft {
    /// Sparse differences.
    pub(crate) diff: BTreeMap<String, Gaps>,
    /// Tensors that are taken as they are, such as a head's.
    pub(crate) abs: BTreeMap<String, Tensor>,
}

/// Weights by name.
pub(crate) type Weights = BTreeMap<String, Tensor>;

impl Sft {
    /// Adds its differences `times` (1 applies it, -1 takes it back) to `weights`, and with `abs` puts in the tensors that
    /// are taken as they are.
    ///
    /// # Errors
    /// `ADAPTER_BASE` naming a tensor that the model does not have; `ADAPTER_FORMAT` for indices outside of a tensor.
    pub(crate) fn apply(&self, weights: &mut Weights, times: f64, abs: bool) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (name, gaps) in &self.diff {
            let own = weights.get_mut(name).ok_or_else(|| lacks(name))?;
            let difference = gaps.dense(&own.size()).map_err(|error| error.at(name))?;
            *own = (own.to_kind(difference.kind()) + difference * times).to_kind(own.kind());
        }
        for (name, tensor) in self.abs.iter().filter(|_| abs) {
            let own = weights.get_mut(name).filter(|own| own.size() == tensor.size());
            let own = own.ok_or_else(|| lacks(name).hint("its head is of another task: compose without `abs`"))?;
            *own = tensor.to_kind(own.kind());
        }
        Ok(())
    }

    /// Entries that are not zero.
    pub(crate) fn entries(&self) -> u64 {
        self.diff.values().map(|gaps| gaps.values.numel() as u64).sum()
    }
}

fn lacks(name: &str) -> pleach_base::Error {
    code::ADAPTER_BASE.error(format!("tensor `{name}`: the model has none of this shape"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sft(values: &[f32]) -> Sft {
        let gaps = Gaps::of(&Tensor::from_slice(values).reshape([2, 2]));
        Sft { diff: [("w".to_owned(), gaps)].into(), abs: [("h".to_owned(), Tensor::from_slice(values))].into() }
    }

    fn base() -> Weights {
        let w = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        [("w".to_owned(), w.reshape([2, 2])), ("h".to_owned(), w.zeros_like())].into()
    }

    #[test]
    fn the_order_does_not_matter_and_overlaps_add() {
        let (a, b) = (sft(&[0.5, 0.0, 0.0, -1.0]), sft(&[0.25, 0.0, 2.0, 0.0]));
        let run = |parts: [&Sft; 2]| {
            let mut weights = base();
            parts.iter().for_each(|part| part.apply(&mut weights, 1.0, false).unwrap());
            weights.remove("w").unwrap()
        };
        assert!(run([&a, &b]).equal(&run([&b, &a])));
        assert!(run([&a, &b]).equal(&Tensor::from_slice(&[1.75f32, 2.0, 5.0, 3.0]).reshape([2, 2])));
        assert_eq!((a.entries(), b.entries()), (2, 2));
        let mut weights = base();
        a.apply(&mut weights, 1.0, false).unwrap();
        b.apply(&mut weights, 1.0, true).unwrap();
        assert_eq!(weights["h"].double_value(&[0]), 0.25, "the head of the one whose head was wanted");
    }

    #[test]
    fn what_is_taken_back_leaves_the_base() {
        let mut weights = base();
        let part = sft(&[0.3, 0.0, -0.7, 0.0]);
        part.apply(&mut weights, 1.0, false).unwrap();
        part.apply(&mut weights, -1.0, false).unwrap();
        let off = (&weights["w"] - &base()["w"]).abs().max().double_value(&[]);
        assert!(off <= 4.0 * f64::from(f32::EPSILON), "{off}");
    }

    #[test]
    fn a_head_of_another_task_must_be_left_out() {
        let mut weights = base();
        weights.remove("h");
        let part = sft(&[0.3, 0.0, -0.7, 0.0]);
        let error = part.apply(&mut weights, 1.0, true).unwrap_err();
        assert_eq!((error.code(), error.message()), (code::ADAPTER_BASE, "tensor `h`: the model has none of this shape"));
        assert!(error.hint_text().unwrap().contains("without `abs`"));
        part.apply(&mut weights, 1.0, false).unwrap();
    }
}
