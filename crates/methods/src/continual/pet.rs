//! LAE's small modules, with trained scales so that all learn at about the same speed.
//!
//! * Adapter beside a part of a block: `c (U gelu(D u + a) + b)`, for the part's input `u`.
//! * LoRA on keys and values: `c B A`.
//! * Prefix: `length` keys and values of its own. With compensation what attention gives them is divided by its own sum,
//!   so that they count as much as all real tokens together: `A_tokens V + (A_prefix / sum A_prefix) V_prefix`.

use tch::Tensor;

/// Smallest sum that prefix attention is divided by.
const LEAST: f64 = 1e-12;

/// The adapter.
pub(crate) struct Bottleneck {
    pub(crate) down: Tensor,      // [r, d]
    pub(crate) down_bias: Tensor, // [r]
    pub(crate) up: Tensor,        // [d, r]
    pub(crate) up_bias: Tensor,   // [d]
    pub(crate) scale: Tensor,     // one number
}

impl Bottleneck {
    /// `c (U gelu(D u + a) + b)` in the precision of its tensors.
    pub(crate) fn run(&self, u: &Tensor) -> Tensor {
        let low = u.to_kind(self.down.kind()).linear(&self.down, Some(&self.down_bias)).gelu("none");
        low.linear(&self.up, Some(&self.up_bias)) * &self.scale
    }
}

/// LoRA on one map.
pub(crate) struct Low {
    pub(crate) a: Tensor,     // [r, d]
    pub(crate) b: Tensor,     // [out, r]
    pub(crate) scale: Tensor, // one number
}

impl Low {
    /// `c B A x` in the precision of its tensors.
    pub(crate) fn run(&self, x: &Tensor) -> Tensor {
        x.to_kind(self.a.kind()).linear(&self.a, None::<&Tensor>).linear(&self.b, None::<&Tensor>) * &self.scale
    }
}

/// What attention gives the prefix, divided by its own sum `total`, which has one number a query and head.
pub(crate) fn compensated(prefix: &Tensor, total: &Tensor) -> Tensor {
    prefix / total.clamp_min(LEAST)
}

/// Attention over tokens and a prefix. `attend` is attention of the tokens' queries over all keys, those of the prefix
/// included, with the values given for the tokens and for the prefix, `None` for zero. Values are never mixed into the
/// weights, so each part comes out of a run of its own.
pub(crate) fn with_prefix(
    values: &Tensor,
    compensatory: bool,
    attend: &dyn Fn(Option<&Tensor>, bool) -> Tensor,
) -> Tensor {
    if !compensatory {
        return attend(Some(values), true);
    }
    let tokens = attend(None, true);
    let ones = values.ones_like();
    let total = attend(Some(&ones), false);
    tokens + compensated(&attend(Some(values), false), &total)
}

/// The same of an explicit matrix, of weights `[.., queries, keys]`, whose columns `at..at + length` are the prefix's.
#[cfg(test)]
fn compensate(weights: &Tensor, at: i64, length: i64) -> Tensor {
    let keys = weights.size().last().copied().unwrap_or_default();
    let prefix = weights.narrow(-1, at, length);
    let total = prefix.sum_dim_intlist(-1, true, None::<tch::Kind>);
    let behind = weights.narrow(-1, at + length, keys - at - length);
    Tensor::cat(&[weights.narrow(-1, 0, at), compensated(&prefix, &total), behind], -1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Tensor {
        Tensor::from_slice(&[0.1f64, 0.2, 0.3, 0.4, 0.25, 0.25, 0.25, 0.25]).reshape([2, 4])
    }

    #[test]
    fn compensated_prefix_columns_sum_to_one_and_the_others_stay() {
        let all = compensate(&weights(), 1, 2);
        let sums = all.narrow(-1, 1, 2).sum_dim_intlist(-1, false, None::<tch::Kind>);
        assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-12);
        assert!(all.narrow(-1, 0, 1).equal(&weights().narrow(-1, 0, 1)));
        assert!(all.narrow(-1, 3, 1).equal(&weights().narrow(-1, 3, 1)));
    }

    /// Three runs over parts of the values are one run with compensated weights.
    #[test]
    fn attention_in_parts_is_attention_by_the_compensated_matrix() {
        let values = Tensor::from_slice(&[1.0f64, 2.0, -1.0, 0.5, 3.0, 1.0, -2.0, 4.0]).reshape([4, 2]); // prefix: rows 0, 1
        let (prefix, tokens) = (values.narrow(0, 0, 2), values.narrow(0, 2, 2));
        let attend = |front: Option<&Tensor>, own: bool| {
            let front = front.map_or_else(|| prefix.zeros_like(), Tensor::shallow_clone);
            let own = if own { tokens.shallow_clone() } else { tokens.zeros_like() };
            weights().matmul(&Tensor::cat(&[front, own], 0))
        };
        let parts = with_prefix(&prefix, true, &attend);
        let whole = compensate(&weights(), 0, 2).matmul(&values);
        assert!((parts - whole).abs().max().double_value(&[]) < 1e-12);
        let plain = with_prefix(&prefix, false, &attend);
        assert!((plain - weights().matmul(&values)).abs().max().double_value(&[]) < 1e-12);
    }
}
