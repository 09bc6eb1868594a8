//! Ranks of each query's passage among all candidates, by cosine similarity.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::metrics::Metric;
use crate::loss::contrastive::normalised;

/// Queries that are scored at once: bounds memory at `CHUNK * candidates` numbers.
const CHUNK: i64 = 256;

/// Ranks, from 1, of candidate `gold[i]` for query i. `queries` is `[q, d]`, `candidates` `[c, d]`. Among equal scores
/// the earlier candidate comes first, so that the result is a function of the embeddings alone.
#[must_use]
pub(super) fn ranks(queries: &Tensor, candidates: &Tensor, gold: &[i64]) -> Vec<i64> {
    tch::no_grad(|| {
        let (queries, candidates) = (normalised(queries), normalised(candidates).tr());
        let gold = Tensor::from_slice(gold).to_device(queries.device());
        let index = Tensor::arange(candidates.size()[1], (Kind::Int64, queries.device()));
        let mut ranks = Vec::with_capacity(queries.size()[0] as usize);
        for at in (0..queries.size()[0]).step_by(CHUNK as usize) {
            let rows = CHUNK.min(queries.size()[0] - at);
            let scores = queries.narrow(0, at, rows).matmul(&candidates); // [rows, c]
            let own = gold.narrow(0, at, rows).unsqueeze(1); // [rows, 1]
            let own_score = scores.gather(1, &own, false);
            let better = scores.gt_tensor(&own_score);
            let tied_before = scores.eq_tensor(&own_score).logical_and(&index.unsqueeze(0).lt_tensor(&own));
            let rank = better.logical_or(&tied_before).sum_dim_intlist(1, false, Kind::Int64) + 1;
            ranks.extend((0..rows).map(|row| rank.int64_value(&[row])));
        }
        ranks
    })
}

/// Metrics over ranks.
#[must_use]
pub(super) fn metrics(ranks: &[i64], wanted: &[Metric]) -> BTreeMap<String, f64> {
    let mean = |f: &dyn Fn(i64) -> f64| ranks.iter().map(|rank| f(*rank)).sum::<f64>() / ranks.len().max(1) as f64;
    let value = |metric: &Metric| match metric {
        Metric::Recall(k) => Some(mean(&|rank| f64::from(u8::from(rank <= i64::from(*k))))),
        Metric::Mrr => Some(mean(&|rank| 1.0 / rank as f64)),
        Metric::Loss | Metric::Accuracy => None,
    };
    wanted.iter().filter_map(|metric| Some((metric.name(), value(metric)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_metrics_are_those_computed_by_hand() {
        let queries = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]).reshape([3, 2]);
        let candidates = Tensor::from_slice(&[5.0f32, 0.0, 0.9, 0.1, 0.0, 0.1, 2.0, 0.0]).reshape([4, 2]);
        // Query 0: candidates 0 and 3 tie at 1, then 1, then 2. Query 1: 2 first. Query 2: 1, then 0, 2, 3 tie.
        assert_eq!(ranks(&queries, &candidates, &[3, 2, 1]), [2, 1, 1]);
        assert_eq!(ranks(&queries, &candidates, &[2, 1, 1]), [4, 2, 1]);
        let found = metrics(&[4, 2, 1], &[Metric::Recall(1), Metric::Recall(3), Metric::Mrr]);
        assert_eq!(found["recall@1"], 1.0 / 3.0);
        assert_eq!(found["recall@3"], 2.0 / 3.0);
        assert!((found["mrr"] - (0.25 + 0.5 + 1.0) / 3.0).abs() < 1e-12);
    }
}
