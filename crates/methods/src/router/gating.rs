//! Which experts a token goes to, and with which gates.
//!
//! With `p = softmax(W u)`: the `k` likeliest, gates divided by their sum; or, the nucleus, the likeliest up to and with
//! the first at which the sum of shares exceeds `top_p`, gates being the shares as they are.

use pleach_base::rng::Key;
use pleach_nn::Layout;
use tch::{Kind, Tensor};

/// The choice of `n` tokens among experts, in at most `k` slots each.
pub(crate) struct Choice {
    /// Shares of all experts, `[n, experts]`.
    pub(crate) shares: Tensor,
    /// Numbers of the experts by falling share, `[n, k]`; -1 where a slot is empty.
    pub(crate) experts: Tensor,
    /// What the experts' results are multiplied with, `[n, k]`; 0 where a slot is empty.
    pub(crate) gates: Tensor,
}

/// The `k` likeliest experts of each token; `logits` `[n, experts]`.
pub(crate) fn top_k(logits: &Tensor, k: i64) -> Choice {
    let shares = logits.softmax(-1, None::<Kind>);
    let (best, experts) = shares.topk(k, -1, true, true);
    let gates = &best / best.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>);
    Choice { shares, experts, gates }
}

/// The nucleus of each token; `logits` `[n, experts]`. A temperature above zero divides the shares themselves.
pub(crate) fn top_p(logits: &Tensor, top_p: f64, temperature: f64) -> Choice {
    let shares = logits.softmax(-1, None::<Kind>);
    let weighed = if temperature > 0.0 { &shares / temperature } else { shares.shallow_clone() };
    let (gates, experts) = weighed.sort(-1, true);
    let width = *gates.size().last().unwrap_or(&0);
    // Left out is what comes behind a sum that exceeds the bound already.
    let exceeds = gates.cumsum(-1, None::<Kind>).gt(top_p);
    let dropped = Tensor::cat(&[exceeds.narrow(-1, 0, 1).zeros_like(), exceeds.narrow(-1, 0, width - 1)], -1);
    Choice { shares, experts: experts.masked_fill(&dropped, -1), gates: gates.masked_fill(&dropped, 0.0) }
}

/// Every expert with its share.
pub(crate) fn all(logits: &Tensor) -> Choice {
    let shares = logits.softmax(-1, None::<Kind>);
    let width = *shares.size().last().unwrap_or(&0);
    let experts = Tensor::arange(width, (Kind::Int64, shares.device())).expand_as(&shares);
    Choice { experts, gates: shares.shallow_clone(), shares }
}

/// Factors of the jitter: uniform in `[1 - noise, 1 + noise)` for every input of every real token, one for others,
/// `[.., width]`. Drawn for each sample by its id.
pub(crate) fn jitter(layout: &Layout, width: usize, noise: f64, key: Key) -> Tensor {
    let mut shape = layout.shape();
    let total: i64 = shape.iter().product();
    let mut values = vec![1.0f32; usize::try_from(total).unwrap_or_default() * width];
    for (sequence, sample) in layout.samples().iter().enumerate() {
        let tokens = layout.token_range(sequence);
        let mut rng = key.with(*sample).rng();
        for value in &mut values[tokens.start * width..tokens.end * width] {
            *value = rng.uniform_in((1.0 - noise) as f32, (1.0 + noise) as f32);
        }
    }
    shape.push(width as i64);
    Tensor::from_slice(&values).reshape(&shape).to_device(layout.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn the_likeliest_share_one() {
        let logits = Tensor::from_slice(&[1.0f64, 3.0, 2.0, 0.0]).reshape([1, 4]);
        let choice = top_k(&logits, 2);
        assert_eq!(list(&choice.experts), [1, 2]);
        assert!((choice.gates.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-12);
        let e = std::f64::consts::E;
        assert!((choice.gates.double_value(&[0, 0]) - e / (1.0 + e)).abs() < 1e-12);
    }

    #[test]
    fn the_nucleus_ends_with_the_first_that_exceeds_the_bound() {
        let logits = Tensor::from_slice(&[0.5f64, 0.3, 0.15, 0.05]).log().reshape([1, 4]);
        let kept = |p: f64| list(&top_p(&logits, p, 0.0).experts);
        assert_eq!(kept(0.4), [0, -1, -1, -1]);
        assert_eq!(kept(0.6), [0, 1, -1, -1]);
        assert_eq!(kept(0.94), [0, 1, 2, -1]);
        assert_eq!(kept(1.0), [0, 1, 2, 3]);
        let gates = top_p(&logits, 0.6, 0.0).gates;
        assert!((gates.sum(Kind::Double).double_value(&[]) - 0.8).abs() < 1e-12, "not divided by their sum");
        assert_eq!(list(&top_p(&logits, 0.6, 2.0).experts), [0, 1, 2, 3], "half of every share");
    }
}
