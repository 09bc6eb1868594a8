//! Which entries may move: the largest changes over all tensors together, or any.

use std::collections::BTreeSet;

use pleach_base::rng::Key;
use tch::{Kind, Tensor};

/// What was selected.
pub(crate) struct Selected {
    /// For each tensor, 1 where an entry may move: those of before and the new ones.
    pub(crate) masks: Vec<Tensor>,
    /// The smallest change among the new ones.
    pub(crate) threshold: f64,
}

/// Adds to `masks` (1 or 0, of the shapes of `changes`) the `k` entries with the largest changes among the others. Of equal
/// changes at the border those that come first are taken: there are exactly `k`.
pub(crate) fn most_changed(changes: &[Tensor], masks: &[Tensor], k: u64) -> Selected {
    let flat = |tensors: &[Tensor]| Tensor::cat(&tensors.iter().map(|t| t.flatten(0, -1)).collect::<Vec<_>>(), 0);
    let (sizes, before) = (flat(changes).abs(), flat(masks));
    let open = sizes.masked_fill(&before.gt(0.0), -1.0);
    let (largest, _) = open.topk(k as i64, 0, true, true);
    let border = largest.get(k as i64 - 1);
    let above = open.gt_tensor(&border);
    let missing = k as i64 - above.sum(Kind::Int64).int64_value(&[]);
    let at_border = open.eq_tensor(&border).nonzero().squeeze_dim(1).narrow(0, 0, missing);
    let chosen = before + above.to_kind(masks[0].kind());
    let _ = chosen.shallow_clone().index_fill_(0, &at_border, 1.0);
    Selected { masks: cut(&chosen, masks), threshold: border.double_value(&[]) }
}

/// `k` entries of all tensors together, any with the same chance.
pub(crate) fn any(like: &[Tensor], k: u64, key: Key) -> Vec<Tensor> {
    let counts = like.iter().map(|tensor| tensor.numel() as i64);
    let total = counts.sum::<i64>();
    let index: Vec<i64> = draw(total as u64, k, key).into_iter().map(|n| n as i64).collect();
    let flat = Tensor::zeros([total], (like[0].kind(), like[0].device()));
    let index = Tensor::from_slice(&index).to_device(flat.device());
    let _ = flat.shallow_clone().index_fill_(0, &index, 1.0);
    cut(&flat, like)
}

/// `k` different numbers below `n` (Floyd 1987).
fn draw(n: u64, k: u64, key: Key) -> BTreeSet<u64> {
    let mut rng = key.rng();
    let mut chosen = BTreeSet::new();
    for last in n - k..n {
        let candidate = rng.below(last + 1);
        if !chosen.insert(candidate) {
            chosen.insert(last);
        }
    }
    chosen
}

fn cut(flat: &Tensor, like: &[Tensor]) -> Vec<Tensor> {
    let mut at = 0;
    let mut one = |tensor: &Tensor| {
        let n = tensor.numel() as i64;
        at += n;
        flat.narrow(0, at - n, n).reshape(tensor.size())
    };
    like.iter().map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(masks: &[Tensor]) -> Vec<i64> {
        masks.iter().map(|mask| mask.sum(Kind::Int64).int64_value(&[])).collect()
    }

    fn zeros(like: &[Tensor]) -> Vec<Tensor> {
        like.iter().map(Tensor::zeros_like).collect()
    }

    #[test]
    fn the_threshold_is_one_for_all_tensors() {
        let small = Tensor::from_slice(&[0.1f32, -0.2, 0.3, 0.05]).reshape([2, 2]);
        let large = Tensor::from_slice(&[5.0f32, -7.0, 0.25]);
        let selected = most_changed(&[small.shallow_clone(), large.shallow_clone()], &zeros(&[small, large]), 3);
        assert_eq!(counts(&selected.masks), [1, 2], "not half of each");
        assert_eq!(selected.threshold, f64::from(0.3f32));
    }

    #[test]
    fn of_equal_changes_the_first_are_taken() {
        let change = Tensor::from_slice(&[0.5f32, -0.5, 1.0, 0.5, 0.5]);
        let selected = most_changed(&[change.shallow_clone()], &zeros(&[change]), 3);
        assert_eq!(Vec::<f32>::try_from(&selected.masks[0]).unwrap(), [1.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_second_selection_takes_others() {
        let change = Tensor::from_slice(&[0.5f32, 0.4, 0.3, 0.2]);
        let first = most_changed(&[change.shallow_clone()], &zeros(&[change.shallow_clone()]), 2);
        let second = most_changed(&[change * 2.0], &first.masks, 2);
        assert_eq!(counts(&second.masks), [4]);
        assert_eq!(second.threshold, f64::from(0.4f32));
    }

    #[test]
    fn any_entries_are_as_many_as_asked() {
        let like = [Tensor::zeros([3, 4], (Kind::Float, tch::Device::Cpu)), Tensor::zeros([8], (Kind::Float, tch::Device::Cpu))];
        for k in [1, 7, 20] {
            let masks = any(&like, k, Key::seed(3));
            assert_eq!(counts(&masks).iter().sum::<i64>(), k as i64);
            assert_eq!(masks[0].size(), [3, 4]);
        }
        let drawn = |seed| counts(&any(&like, 10, Key::seed(seed)));
        assert!((0..9).any(|seed| drawn(seed) != drawn(9)), "the key matters");
    }
}
