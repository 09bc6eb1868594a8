//! The split of a tensor among experts, and the merge.

use pleach_base::rng::Key;
use tch::{Kind, Tensor};

use super::{MaskMode, Merge};

/// The number of the expert, `0..experts`, that owns each entry: the rank of its score, cut into bands of equal size.
/// `score` is `[rows, columns]` or, in mode `all`, of any shape; the result has the same, int64. Band `i` of `n` entries
/// begins at rank `floor(i n / experts)`, so that sizes differ by one at most.
pub(crate) fn bands(score: &Tensor, experts: i64, mode: MaskMode) -> Tensor {
    let (flat, along) = match mode {
        MaskMode::All => (score.flatten(0, -1), 0),
        MaskMode::Row => (score.shallow_clone(), 1),
        MaskMode::Column => (score.shallow_clone(), 0),
    };
    let entries = flat.size()[along as usize].max(1);
    // Stable: equal scores are ranked by where they lie, and every entry has one rank.
    let order = flat.argsort_stable(true, along, false);
    let rank = order.argsort(along, false);
    let band = (((rank + 1) * experts) - 1).floor_divide_scalar(entries);
    band.reshape(score.size())
}

/// The scores of `numel` entries that `key` gives.
pub(crate) fn scores(numel: usize, key: Key) -> Tensor {
    let mut rng = key.rng();
    let values: Vec<f64> = (0..numel).map(|_| (rng.next_u64() >> 11) as f64).collect();
    Tensor::from_slice(&values)
}

/// One tensor of the experts' `values`, all of one shape. `bands` says who owns which entry; without it all own all.
pub(crate) fn merged(values: &[Tensor], bands: Option<&Tensor>, merge: Merge) -> Tensor {
    let sum = |terms: Vec<Tensor>| Tensor::stack(&terms, 0).sum_dim_intlist(0, false, None::<Kind>);
    match (merge, bands) {
        (Merge::Joint, Some(bands)) => {
            let own = |(i, value): (usize, &Tensor)| value * owned(bands, i).to_kind(value.kind());
            sum(values.iter().enumerate().map(own).collect())
        }
        _ => sum(values.iter().map(Tensor::shallow_clone).collect()) / values.len().max(1) as f64,
    }
}

/// Which entries an expert owns: bool.
pub(crate) fn owned(bands: &Tensor, expert: usize) -> Tensor {
    bands.eq(expert as f64)
}

/// `value` where the expert owns the entry, `start` elsewhere.
pub(crate) fn within(value: &Tensor, start: &Tensor, bands: &Tensor, expert: usize) -> Tensor {
    value.where_self(&owned(bands, expert), start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(bands: &Tensor, experts: usize) -> Vec<i64> {
        (0..experts).map(|i| owned(bands, i).sum(Kind::Int64).int64_value(&[])).collect()
    }

    fn even(sizes: &[i64]) -> bool {
        sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1
    }

    /// Also with equal scores, and for numbers of experts that floating-point shares would get wrong.
    #[test]
    fn bands_cover_all_and_are_of_equal_size() {
        for (rows, columns) in [(6i64, 10i64), (7, 9), (18, 3), (5, 5)] {
            let drawn = scores((rows * columns) as usize, Key::seed(3)).reshape([rows, columns]);
            for score in [&drawn, &drawn.zeros_like()] {
                for experts in [1usize, 2, 3, 4, 6, 7, 11, 16] {
                    let n = experts as i64;
                    let all = bands(score, n, MaskMode::All);
                    assert!(even(&sizes(&all, experts)), "{rows}x{columns} among {experts}");
                    assert_eq!(sizes(&all, experts).iter().sum::<i64>(), rows * columns, "each entry has an owner");
                    let (by_row, by_column) = (bands(score, n, MaskMode::Row), bands(score, n, MaskMode::Column));
                    assert!((0..rows).all(|row| even(&sizes(&by_row.get(row), experts))));
                    assert!((0..columns).all(|at| even(&sizes(&by_column.select(1, at), experts))));
                }
            }
        }
    }

    #[test]
    fn the_first_band_has_the_lowest_scores() {
        let score = Tensor::from_slice(&[0.4f64, 0.1, 0.9, 0.3, 0.8, 0.2]);
        let found = Vec::<i64>::try_from(bands(&score, 3, MaskMode::All)).unwrap();
        assert_eq!(found, [1, 0, 2, 1, 2, 0]);
    }

    #[test]
    fn merging_averages_or_joins() {
        let bands = Tensor::from_slice(&[0i64, 1, 1]);
        let values = [Tensor::from_slice(&[1.0f64, 2.0, 2.0]), Tensor::from_slice(&[2.0f64, 4.0, 6.0])];
        let list = |tensor: Tensor| Vec::<f64>::try_from(tensor).unwrap();
        assert_eq!(list(merged(&values, Some(&bands), Merge::Add)), [1.5, 3.0, 4.0]);
        assert_eq!(list(merged(&values, Some(&bands), Merge::Joint)), [1.0, 4.0, 6.0]);
        assert_eq!(list(merged(&values, None, Merge::Joint)), [1.5, 3.0, 4.0]);
    }

    /// The up projection is linear: the merged one gives the mean of what all draws give, dropout aside.
    #[test]
    fn the_merged_adapter_gives_the_mean_over_all_draws() {
        use crate::adapter::visual_adapter::Style;
        use crate::adapter::visual_adapter::run::Branch;
        let drawn = |shape: &[i64], seed: u64| {
            let mut rng = Key::seed(seed).rng();
            let values: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| f64::from(rng.normal())).collect();
            Tensor::from_slice(&values).reshape(shape)
        };
        let (output, residual) = (drawn(&[3, 8], 1), drawn(&[3, 8], 2));
        for style in [Style::Adaptformer, Style::Pfeiffer, Style::Houlsby] {
            let ups: Vec<_> = (0..4).map(|i| (drawn(&[8, 5], 10 + i), drawn(&[8], 20 + i))).collect();
            let run = |up: (Tensor, Tensor)| {
                let norm = (style != Style::Houlsby).then(|| (drawn(&[8], 3), drawn(&[8], 4)));
                let branch = Branch { norm, down: (drawn(&[5, 8], 5), drawn(&[5], 6)), up };
                style.join(&branch, 0.1, [&output, &residual], None, |output| output + &residual)
            };
            let all: Vec<_> = ups.iter().map(|(weight, bias)| run((weight.shallow_clone(), bias.shallow_clone()))).collect();
            let mean = Tensor::stack(&all, 0).mean_dim(0, false, None::<Kind>);
            let of = |pick: fn(&(Tensor, Tensor)) -> &Tensor| {
                let list: Vec<_> = ups.iter().map(|up| pick(up).shallow_clone()).collect();
                merged(&list, None, Merge::Add)
            };
            let off = (run((of(|up| &up.0), of(|up| &up.1))) - mean).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{style:?}: {off:e}");
        }
    }
}
