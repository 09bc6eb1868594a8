//! Measures of a sequence, from its accuracy matrix: row `k` holds the accuracies on the classes of tasks `0..=k` after
//! task `k`, among all classes seen so far.

/// What a sequence has come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measures {
    /// Mean accuracy over the tasks of the last row.
    pub average: f64,
    /// Mean of that over all rows: average incremental accuracy.
    pub incremental: f64,
    /// Mean over all tasks but the last of what each has lost since it was best.
    pub forgetting: f64,
}

/// The measures of rows `matrix[k][0..=k]`; `None` without a row.
#[must_use]
pub fn measures(matrix: &[Vec<f64>]) -> Option<Measures> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (last, before) = matrix.split_last()?;
    let rows: Vec<f64> = matrix.iter().map(|row| mean(row)).collect();
    let lost: Vec<f64> = (0..before.len())
        .map(|task| {
            let best = before.iter().filter_map(|row| row.get(task)).copied().fold(f64::NEG_INFINITY, f64::max);
            best - last[task]
        })
        .collect();
    Some(Measures { average: mean(last), incremental: mean(&rows), forgetting: mean(&lost) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_those_computed_by_hand() {
        let matrix = [vec![0.9], vec![0.5, 0.8], vec![0.6, 0.2, 1.0]];
        let found = measures(&matrix).unwrap();
        assert!((found.average - 0.6).abs() < 1e-12);
        assert!((found.incremental - (0.9 + 0.65 + 0.6) / 3.0).abs() < 1e-12);
        assert!((found.forgetting - (0.3 + 0.6) / 2.0).abs() < 1e-12);
        assert_eq!(measures(&matrix[..1]).unwrap().forgetting, 0.0, "one task has nothing to forget");
        assert_eq!(measures(&[]), None);
    }
}
