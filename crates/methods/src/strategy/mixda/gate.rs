//! The formulas of MixDA on tensors: the gate, the mixture, and the loss on general text.

use pleach_nn::Layout;
use tch::{Kind, Tensor};

use super::{Activation, Pool};
use crate::adapter::common::every_token;

/// The maps of a gate, with ReLU between them.
pub(crate) struct Gate {
    /// Weights `[out, in]` and biases in order; the last has one row an adapter and one for the frozen part.
    pub(crate) maps: Vec<(Tensor, Tensor)>,
    pub(crate) activation: Activation,
}

impl Gate {
    /// Weights `[.., n + 1]` for queries `[.., q]`. `drop` is applied to the input of every map.
    pub(crate) fn run(&self, query: &Tensor, drop: impl Fn(usize, Tensor) -> Tensor) -> Tensor {
        let mut hidden = query.shallow_clone();
        for (index, (weight, bias)) in self.maps.iter().enumerate() {
            let input = if index == 0 { hidden } else { hidden.relu() };
            hidden = drop(index, input).linear(weight, Some(bias));
        }
        match self.activation {
            Activation::Sigmoid => hidden.sigmoid(),
            Activation::Softmax => hidden.softmax(-1, None::<Kind>),
        }
    }
}

/// The last biases as they begin: with weights near zero all results are `1 / outputs`.
pub(crate) fn first_bias(activation: Activation, outputs: usize) -> Tensor {
    let value = match activation {
        Activation::Sigmoid => -(outputs as f64 - 1.0).ln(), // the logit of 1 / outputs
        Activation::Softmax => 0.0,
    };
    Tensor::full([outputs as i64], value, (Kind::Float, tch::Device::Cpu))
}

/// `sum_k w_k K_k + w_{n+1} F`: `weights` `[.., n + 1]`, all others `[.., d]`.
pub(crate) fn mixture(weights: &Tensor, adapters: &[Tensor], frozen: &Tensor) -> Tensor {
    let weight = |index: usize| weights.narrow(-1, index as i64, 1);
    let sum = frozen * weight(adapters.len());
    adapters.iter().enumerate().fold(sum, |sum, (index, adapter)| sum + adapter * weight(index))
}

/// `|F - K|^2` over the last axis, mean over features: `[..]`.
pub(crate) fn apart(frozen: &Tensor, adapter: &Tensor) -> Tensor {
    (frozen - adapter).square().mean_dim(-1, false, None::<Kind>)
}

/// What the gate sees of `query` `[.., q]`: itself, or one row a sequence, `[batch, q]`.
pub(crate) fn pooled(layout: &Layout, query: &Tensor, pool: Pool) -> Tensor {
    match pool {
        Pool::None => query.shallow_clone(),
        Pool::First => layout.pick(query, |_| 0),
        Pool::Last => {
            let width = layout.shape().last().copied().unwrap_or(1);
            layout.pick(query, |_| usize::try_from(width - 1).unwrap_or_default())
        }
        Pool::LastReal => layout.pick(query, |length| length.saturating_sub(1)),
        Pool::Mean => layout.mean(query),
    }
}

/// The gate's weights for every token, from what [`pooled`] gave it.
pub(crate) fn spread(layout: &Layout, weights: &Tensor, pool: Pool) -> Tensor {
    if pool == Pool::None { weights.shallow_clone() } else { every_token(layout, weights) }
}

#[cfg(test)]
mod tests {
    use pleach_base::rng::Key;

    use super::*;

    fn drawn(shape: &[i64], seed: u64) -> Tensor {
        let mut rng = Key::seed(seed).rng();
        let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| rng.normal()).collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    fn gate(activation: Activation) -> Gate {
        let map = |output, input, seed| (drawn(&[output, input], seed), drawn(&[output], seed + 1));
        Gate { maps: vec![map(5, 4, 1), map(3, 5, 3)], activation }
    }

    #[test]
    fn weights_of_a_softmax_sum_to_one_and_those_of_a_sigmoid_do_not() {
        let query = drawn(&[2, 6, 4], 9);
        let sums = |activation| gate(activation).run(&query, |_, input| input).sum_dim_intlist(-1, false, None::<Kind>);
        let off = |activation| (sums(activation) - 1.0).abs().max().double_value(&[]);
        assert!(off(Activation::Softmax) < 1e-6 && off(Activation::Sigmoid) > 0.05);
    }

    #[test]
    fn an_adapter_of_weight_zero_changes_nothing() {
        let (frozen, one, more) = (drawn(&[2, 6, 4], 1), drawn(&[2, 6, 4], 2), drawn(&[2, 6, 4], 3));
        let without = mixture(&Tensor::from_slice(&[0.25f32, 0.5]), &[one.shallow_clone()], &frozen);
        let with = mixture(&Tensor::from_slice(&[0.25f32, 0.0, 0.5]), &[one, more], &frozen);
        assert!(with.equal(&without));
        assert!((without - (drawn(&[2, 6, 4], 2) * 0.25 + &frozen * 0.5)).abs().max().double_value(&[]) < 1e-6);
    }

    /// The released code compares the mixture with itself: this is what it would not do.
    #[test]
    fn an_adapter_at_zero_is_as_far_from_the_frozen_map_as_that_is_long() {
        let (frozen, other) = (drawn(&[2, 6, 4], 1), drawn(&[2, 6, 4], 2));
        let mean = |tensor: &Tensor| tensor.mean(Kind::Float).double_value(&[]);
        let zero = mean(&apart(&frozen, &frozen.zeros_like()));
        assert!((zero - mean(&frozen.square())).abs() < 1e-6 && zero > 0.1);
        assert!(mean(&apart(&frozen, &other)) > 0.1 && mean(&apart(&frozen, &frozen)) == 0.0);
    }
}
