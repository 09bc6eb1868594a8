//! MOS: an adapter a task, each drawn to the mean of those before it; a contrast between features; the adapter of an image
//! found by predicting its class, the class's task, and again under that task's adapter.
//!
//! Sun et al., *MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning*, AAAI 2025.

use tch::{Kind, Tensor};

/// `(1 - alpha) A + alpha * mean`.
pub(crate) fn merged(adapter: &Tensor, mean: &Tensor, alpha: f64) -> Tensor {
    adapter * (1.0 - alpha) + mean * alpha
}

/// The mean of older adapters' tensors; `None` without any, when nothing is merged.
pub(crate) fn mean_of(older: &[Tensor]) -> Option<Tensor> {
    let (first, rest) = older.split_first()?;
    Some(rest.iter().fold(first.shallow_clone(), |sum, one| sum + one) / older.len() as f64)
}

/// Cross-entropy of every vector with itself among all: `known` `[k, d]`, the means of older classes, and `features`
/// `[n, d]`. The mean over both.
pub(crate) fn contrast(known: Option<&Tensor>, features: &Tensor, temperature: f64) -> Tensor {
    let features = features.to_kind(known.map_or(features.kind(), Tensor::kind));
    let all = known.map_or_else(|| features.shallow_clone(), |known| Tensor::cat(&[known, &features], 0));
    let logits = all.matmul(&all.tr()) / temperature;
    let own = Tensor::arange(all.size()[0], (Kind::Int64, all.device()));
    logits.cross_entropy_loss(&own, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
}

/// Cosine similarities `[n, classes]` to the classes' prototypes `[classes, d]`.
pub(crate) fn cosine(features: &Tensor, prototypes: &Tensor) -> Tensor {
    let unit = |x: &Tensor| {
        let norm = x.norm_scalaropt_dim(2, [-1i64], true).clamp_min(1e-12);
        x / norm
    };
    unit(features).matmul(&unit(prototypes).tr())
}

/// What was found for some inputs.
pub(crate) struct Retrieved {
    /// `[n, classes]`: logits of the head under the last adapter that was tried.
    pub(crate) logits: Tensor,
    /// For each input the tasks whose adapters were tried, in order.
    pub(crate) visited: Vec<Vec<usize>>,
}

/// The self-refined retrieval. `logits[t]` `[n, classes]`: the head's, under the adapter of task `t`; `first[i]` the task
/// to begin with; `task_of[class]`. Ends when a prediction lies in the task that it was made under, or after `most` tries.
pub(crate) fn retrieve(logits: &[Tensor], first: &[usize], task_of: &[usize], most: usize) -> Retrieved {
    let best: Vec<Vec<i64>> = logits.iter().map(|logits| classes_of(&logits.argmax(-1, false))).collect();
    let mut rows = Vec::with_capacity(first.len());
    let mut visited = Vec::with_capacity(first.len());
    for (row, begin) in first.iter().enumerate() {
        let mut tried = vec![*begin];
        let mut at = *begin;
        while tried.len() < most.max(1) {
            let next = task_of[best[at][row] as usize];
            if next == at {
                break;
            }
            at = next;
            tried.push(at);
        }
        rows.push(logits[at].get(row as i64));
        visited.push(tried);
    }
    Retrieved { logits: Tensor::stack(&rows, 0), visited }
}

/// Class numbers on the host.
pub(crate) fn classes_of(tensor: &Tensor) -> Vec<i64> {
    let tensor = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Int64);
    (0..tensor.numel() as i64).map(|index| tensor.int64_value(&[index])).collect()
}

/// The scores: with `ensemble` probabilities under the retrieved adapter and those of the prototypes, the latter sharper
/// by the number of tasks.
pub(crate) fn scores(retrieved: &Tensor, cosine: &Tensor, tasks: usize, ensemble: bool) -> Tensor {
    if !ensemble {
        return retrieved.shallow_clone();
    }
    retrieved.softmax(-1, None::<Kind>) + (cosine * tasks as f64).softmax(-1, None::<Kind>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_gradients_the_distance_to_the_mean_shrinks_by_each_merge() {
        let older = [Tensor::from_slice(&[1.0f64, 0.0]), Tensor::from_slice(&[3.0f64, 2.0])];
        let mean = mean_of(&older).unwrap();
        let start = Tensor::from_slice(&[10.0f64, -4.0]);
        let end = (0..5).fold(start.copy(), |at, _| merged(&at, &mean, 0.1));
        let off = (&end - &mean) - (&start - &mean) * 0.9f64.powi(5);
        assert!(off.abs().max().double_value(&[]) < 1e-12);
        assert!(merged(&start, &mean, 0.0).equal(&start), "nothing is merged with alpha 0");
        assert!(mean_of(&[]).is_none(), "the first task has nothing to be merged with");
    }

    /// Tasks of two classes each; under adapter t the prediction is `predicts[t]`.
    fn walk(predicts: &[i64], first: usize, most: usize) -> Vec<usize> {
        let classes = 2 * predicts.len() as i64;
        let logits: Vec<_> =
            predicts.iter().map(|class| Tensor::from_slice(&[*class]).one_hot(classes).to_kind(Kind::Float)).collect();
        let task_of: Vec<_> = (0..classes as usize).map(|class| class / 2).collect();
        retrieve(&logits, &[first], &task_of, most).visited.remove(0)
    }

    #[test]
    fn retrieval_ends_in_its_own_task_or_at_its_limit() {
        assert_eq!(walk(&[1, 0], 0, 4), [0], "a prediction in its own task is enough");
        assert_eq!(walk(&[2, 3], 0, 4), [0, 1]);
        assert_eq!(walk(&[2, 0], 0, 4), [0, 1, 0, 1], "a circle is left after four");
        assert_eq!(walk(&[2, 0], 1, 1), [1]);
    }

    #[test]
    fn scores_are_sharper_by_the_number_of_tasks() {
        let (logits, cosine) = (Tensor::from_slice(&[0.0f64, 0.0]), Tensor::from_slice(&[0.5f64, -0.5]));
        let sum = scores(&logits, &cosine, 3, true);
        let expected = 0.5 + 1.0 / (1.0 + (-3.0f64).exp());
        assert!((sum.double_value(&[0]) - expected).abs() < 1e-12);
        assert!(scores(&logits, &cosine, 3, false).equal(&logits));
    }

    #[test]
    fn every_vector_is_to_match_itself() {
        let features = Tensor::from_slice(&[1.0f64, 0.0, 0.0, 2.0]).reshape([2, 2]);
        let known = Tensor::from_slice(&[0.0f64, 1.0]).unsqueeze(0);
        // Rows of the products over 0.5: known (2, 0, 4), first (0, 2, 0), second (4, 0, 8).
        let ce = |row: [f64; 3], own: usize| row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[own];
        let expected = (ce([2.0, 0.0, 4.0], 0) + ce([0.0, 2.0, 0.0], 1) + ce([4.0, 0.0, 8.0], 2)) / 3.0;
        let found = contrast(Some(&known), &features, 0.5).double_value(&[]);
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }
}
