//! From tokens to the rows of experts and back: a row for every token and expert that it chose, sorted by expert.

use tch::{Kind, Tensor};

use super::gating::Choice;

/// The rows of all experts, one behind the other.
pub(crate) struct Rows {
    /// Number of each row's token, `[m]`.
    pub(crate) tokens: Tensor,
    /// Rows of each expert.
    pub(crate) counts: Vec<i64>,
    /// The slots in order of expert, the empty ones first, `[n k]`.
    order: Tensor,
    empty: i64,
}

impl Rows {
    /// The rows that a choice asks for.
    pub(crate) fn of(choice: &Choice, experts: usize) -> Self {
        let slots = *choice.experts.size().last().unwrap_or(&1);
        let flat = choice.experts.flatten(0, -1);
        let order = flat.argsort_stable(true, 0, false);
        // Counted from 1: before them are the empty slots.
        let used = (&flat + 1).bincount(None::<Tensor>, experts as i64 + 1);
        let mut counts = Vec::<i64>::try_from(used).unwrap_or_default();
        let empty = counts.remove(0);
        let full = order.numel() as i64 - empty;
        let tokens = order.narrow(0, empty, full).floor_divide_scalar(slots);
        Self { tokens, counts, order, empty }
    }

    /// The rows' inputs `[m, d]` of the tokens' `[n, d]`.
    pub(crate) fn gather(&self, tokens: &Tensor) -> Tensor {
        tokens.index_select(0, &self.tokens)
    }

    /// The tokens' results `[n, d]`: the sum over slots of the gate times the row's result; `results` `[m, d]`.
    pub(crate) fn combine(&self, choice: &Choice, results: &Tensor) -> Tensor {
        let width = results.size()[1];
        let sorted = match self.empty {
            0 => results.shallow_clone(),
            empty => Tensor::cat(
                &[Tensor::zeros([empty, width], (results.kind(), results.device())), results.shallow_clone()],
                0,
            ),
        };
        let size = choice.experts.size();
        let slots = sorted.index_select(0, &self.order.argsort(0, false)).reshape([size[0], size[1], width]);
        (slots * choice.gates.unsqueeze(-1)).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)
    }
}

/// The mixture whole: `run` gives the experts' results `[m, out]` for their rows `[m, d]`.
#[cfg(test)]
pub(crate) fn mix(
    tokens: &Tensor,
    choice: &Choice,
    experts: usize,
    run: impl FnOnce(&Tensor, &Rows) -> Tensor,
) -> Tensor {
    let rows = Rows::of(choice, experts);
    let results = run(&rows.gather(tokens), &rows);
    rows.combine(choice, &results)
}

#[cfg(test)]
mod tests {
    use super::super::gating;
    use super::*;

    /// Against every expert on every token.
    #[test]
    fn a_mixture_is_the_sum_of_what_was_chosen() {
        let numbers = |n: i64, at: f64| (Tensor::arange(n, (Kind::Double, tch::Device::Cpu)) * 1.7 + at).sin();
        let (tokens, logits) = (numbers(5 * 3, 0.1).reshape([5, 3]), numbers(5 * 4, 0.7).reshape([5, 4]));
        let maps = numbers(4 * 2 * 3, 0.3).reshape([4, 2, 3]);
        for choice in [gating::top_k(&logits, 2), gating::top_p(&logits, 0.5, 0.0), gating::all(&logits)] {
            let mixed = mix(&tokens, &choice, 4, |picked, rows| {
                let parts = picked.split_with_sizes(&rows.counts, 0);
                let of = |(expert, part): (usize, &Tensor)| part.linear(&maps.get(expert as i64), None::<&Tensor>);
                Tensor::cat(&parts.iter().enumerate().map(of).collect::<Vec<_>>(), 0)
            });
            let all = tokens.unsqueeze(0).matmul(&maps.transpose(1, 2)); // [experts, n, out]
            let expected = Tensor::zeros([5, 2], (Kind::Double, tch::Device::Cpu));
            for token in 0..5 {
                for slot in 0..choice.experts.size()[1] {
                    let expert = choice.experts.int64_value(&[token, slot]);
                    if expert >= 0 {
                        let mut row = expected.get(token);
                        row += all.get(expert).get(token) * choice.gates.double_value(&[token, slot]);
                    }
                }
            }
            assert!((mixed - expected).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
