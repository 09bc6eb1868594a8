//! A sparse difference as it lies in a file: the flat indices of what is not zero, each as its distance from the one
//! before, and the values. Flat indices count the first axis fastest, as the reference's do.

use pleach_base::{Result, code};
use tch::{Kind, Tensor};

/// Differences up to this size are none.
pub(crate) const NOTHING: f64 = 1e-7;

/// Index steps `[n]` int64 and values `[n]`.
#[derive(Debug)]
pub(crate) struct Gaps {
    pub(crate) index_steps: Tensor,
    pub(crate) values: Tensor,
}

impl Gaps {
    /// What is not zero of `difference`, whatever its shape.
    pub(crate) fn of(difference: &Tensor) -> Self {
        let flat = first_axis_fastest(&difference.detach()).reshape([-1]);
        let index = flat.abs().gt(NOTHING).nonzero().squeeze_dim(1);
        let before = Tensor::cat(&[Tensor::zeros([1], (Kind::Int64, index.device())), index.shallow_clone()], 0);
        let index_steps = &index - before.narrow(0, 0, index.numel() as i64);
        Self { index_steps, values: flat.index_select(0, &index) }
    }

    /// The difference of this shape.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when indices and values do not belong together or lie outside of the shape.
    pub(crate) fn dense(&self, shape: &[i64]) -> Result<Tensor> {
        let wrong = |what: &str| code::ADAPTER_FORMAT.error(format!("index_steps: {what}"));
        if self.index_steps.size() != self.values.size() || self.index_steps.dim() != 1 {
            return Err(wrong("not one for each value"));
        }
        let count: i64 = shape.iter().product();
        let flat = Tensor::zeros([count], (self.values.kind(), self.values.device()));
        if self.values.numel() > 0 {
            let index = self.index_steps.to_kind(Kind::Int64).cumsum(0, Kind::Int64);
            let steps = self.index_steps.slice(0, 1, None, 1);
            let rises = self.index_steps.int64_value(&[0]) >= 0
                && (steps.numel() == 0 || steps.min().int64_value(&[]) > 0);
            if !rises || index.int64_value(&[-1]) >= count {
                return Err(wrong("do not rise, or lead out of the tensor"));
            }
            let _ = flat.shallow_clone().index_copy_(0, &index, &self.values);
        }
        let reversed: Vec<i64> = shape.iter().rev().copied().collect();
        Ok(first_axis_fastest(&flat.reshape(reversed)).contiguous())
    }
}

/// All axes in the opposite order.
fn first_axis_fastest(tensor: &Tensor) -> Tensor {
    let axes: Vec<i64> = (0..tensor.dim() as i64).rev().collect();
    tensor.permute(axes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_axis_counts_fastest() {
        let difference = Tensor::from_slice(&[0.0f32, 0.5, 0.0, -2.0, 5e-8, 3.0]).reshape([2, 3]);
        let gaps = Gaps::of(&difference);
        // [1, 0] is number 1, [0, 1] is number 2, [1, 2] is number 5.
        assert_eq!(Vec::<i64>::try_from(&gaps.index_steps).unwrap(), [1, 1, 3]);
        assert_eq!(Vec::<f32>::try_from(&gaps.values).unwrap(), [-2.0, 0.5, 3.0]);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for shape in [vec![7], vec![3, 5], vec![2, 3, 4], vec![1]] {
            let count: i64 = shape.iter().product();
            let values = (Tensor::arange(count, (Kind::Float, tch::Device::Cpu)) * 2.1).sin();
            let difference = (&values * values.gt(0.2).to_kind(Kind::Float)).reshape(shape.as_slice());
            assert!(Gaps::of(&difference).dense(&shape).unwrap().equal(&difference), "{shape:?}");
        }
        let nothing = Tensor::zeros([2, 2], (Kind::Float, tch::Device::Cpu));
        assert!(Gaps::of(&nothing).dense(&[2, 2]).unwrap().equal(&nothing));
    }

    #[test]
    fn indices_that_lead_astray_are_refused() {
        let values = Tensor::from_slice(&[1.0f32, 2.0]);
        for steps in [[0i64, 0], [-1, 2], [3, 1], [3, -1]] {
            let gaps = Gaps { index_steps: Tensor::from_slice(&steps), values: values.shallow_clone() };
            assert_eq!(gaps.dense(&[2, 2]).unwrap_err().code(), code::ADAPTER_FORMAT, "{steps:?}");
        }
        let gaps = Gaps { index_steps: Tensor::from_slice(&[1i64]), values };
        assert_eq!(gaps.dense(&[2, 2]).unwrap_err().code(), code::ADAPTER_FORMAT);
    }
}
