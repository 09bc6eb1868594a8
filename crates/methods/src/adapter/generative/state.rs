//! The generator's formulas over tensors: from hidden states to the state of a chunk, from states to the map that later
//! segments get, and what it adds.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_nn::Segment;
use tch::Tensor;

use super::Merge;
use super::normal::{Directions, Rule};

/// Epsilon of the normalisation of hidden states.
const EPS: f64 = 1e-6;

/// The generator of one target.
pub(crate) struct Generator {
    pub(crate) a1: Tensor,   // [q, in]
    pub(crate) a2: Tensor,   // [q, hidden]
    pub(crate) a3: Tensor,   // [r, hidden]
    pub(crate) b: Tensor,    // [out, r]
    pub(crate) norm: Tensor, // [hidden]
    /// `alpha / r`.
    pub(crate) scale: f64,
    pub(crate) merge: Merge,
    pub(crate) rule: Rule,
}

/// The sum of a context's chunk states, `[q, r]`, and how many chunks it is of.
#[derive(Debug)]
pub(crate) struct Sum {
    pub(crate) state: Tensor,
    pub(crate) chunks: u64,
}

impl Sum {
    /// The sum with one chunk more.
    pub(crate) fn and(&self, chunk: &Tensor) -> Self {
        Self { state: &self.state + chunk, chunks: self.chunks + 1 }
    }

    /// The sum of one chunk.
    pub(crate) fn of(chunk: &Tensor) -> Self {
        Self { state: chunk.shallow_clone(), chunks: 1 }
    }
}

/// The maps of a batch: a table `[n, q, r]` whose first entry is zero, and each sequence's number in it.
pub(crate) struct Maps {
    pub(crate) table: Tensor,
    pub(crate) index: Vec<i64>,
}

/// Sequences whose chunk states some later segment of their document needs.
pub(crate) fn feeding(segments: &[Segment]) -> Vec<usize> {
    let needed = |i: usize| {
        let start = i - segments[i].index;
        let own = segments[i + 1..].iter().take_while(|segment| segment.index > 0);
        let farthest = own.map(|segment| segment.sees).max().unwrap_or(0);
        start + farthest > i
    };
    (0..segments.len()).filter(|i| needed(*i)).collect()
}

impl Generator {
    /// `K^T V` of a chunk: hidden states `[.., tokens, hidden]`, `mask` `[.., tokens]` (0 at padding), to `[.., q, r]`.
    pub(crate) fn chunk(&self, hidden: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let hidden = hidden.to_kind(self.a2.kind());
        let square = hidden.square().mean_dim([-1i64].as_slice(), true, hidden.kind());
        let unit = &hidden * (square + EPS).rsqrt() * &self.norm;
        let mut keys = unit.linear::<Tensor>(&self.a2, None);
        let values = unit.linear::<Tensor>(&self.a3, None);
        if let Some(mask) = mask {
            keys = keys.g_mul(&mask.to_kind(self.a2.kind()).unsqueeze(-1));
        }
        keys.transpose(-2, -1).matmul(&values)
    }

    /// The maps of sequences that are segments of documents; `states` has the chunk states that [`feeding`] names,
    /// `before` what went before the first segment of all. `None` when nobody gets one.
    pub(crate) fn maps(
        &self,
        segments: &[Segment],
        states: &BTreeMap<usize, Tensor>,
        before: Option<&Sum>,
        (train, key): (bool, Key),
    ) -> Option<Maps> {
        let (mut sums, mut index) = (Vec::new(), vec![0; segments.len()]);
        let mut start = 0;
        while start < segments.len() {
            let more = segments[start + 1..].iter().take_while(|segment| segment.index > 0).count();
            let end = start + 1 + more;
            let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            (start..end).for_each(|i| readers.entry(segments[i].sees).or_default().push(i));
            let mut sum = before.map(|before| Sum { state: before.state.shallow_clone(), ..*before });
            let mut added = 0;
            for (sees, who) in readers {
                while added < sees {
                    let chunk = &states[&(start + added)];
                    sum = Some(sum.map_or_else(|| Sum::of(chunk), |sum| sum.and(chunk)));
                    added += 1;
                }
                if let Some(sum) = &sum {
                    sums.push(self.merged(sum));
                    who.iter().for_each(|i| index[*i] = sums.len() as i64);
                }
            }
            start = end;
        }
        if sums.is_empty() {
            return None;
        }
        let maps = self.rule.run(&Tensor::stack(&sums, 0), train, key);
        let none = maps.narrow(0, 0, 1).detach().zeros_like();
        Some(Maps { table: Tensor::cat(&[none, maps], 0), index })
    }

    /// What is normalised.
    fn merged(&self, sum: &Sum) -> Tensor {
        match self.merge {
            Merge::PreNormSum => sum.state.shallow_clone(),
            Merge::PreNormMean => &sum.state / sum.chunks.max(1) as f64,
        }
    }

    /// `alpha / r B S^T (A1 x)` for `x` `[.., tokens, in]` and maps `[.., q, r]`.
    pub(crate) fn added(&self, x: &Tensor, map: &Tensor) -> Tensor {
        x.linear::<Tensor>(&self.a1, None).matmul(map).linear::<Tensor>(&self.b, None) * self.scale
    }

    /// The map of a context `[q, r]` at its full rank.
    pub(crate) fn map(&self, sum: &Sum, key: Key) -> Tensor {
        self.rule.run(&self.merged(sum).unsqueeze(0), false, key).squeeze_dim(0)
    }

    /// The same addition as a pair `(A [k, in], B [out, k])`, without `alpha / r`: of all `r` directions.
    pub(crate) fn pair(&self, map: &Tensor) -> (Tensor, Tensor) {
        (map.transpose(-2, -1).matmul(&self.a1), self.b.shallow_clone())
    }

    /// The same of the kept singular directions alone, which leaves nothing out: `A = U^T A1`, `B V`.
    pub(crate) fn short_pair(&self, sum: &Sum, key: Key) -> (Tensor, Tensor) {
        let Directions { u, v, .. } = self.rule.kept(&self.merged(sum).unsqueeze(0), key);
        (u.squeeze_dim(0).transpose(-2, -1).matmul(&self.a1), self.b.matmul(&v.squeeze_dim(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_seen_later_is_worked_out() {
        let segment = |(index, sees)| Segment { index, sees };
        // Two chunks with their windows, then a document of one chunk, then three chunks.
        let segments: Vec<_> = [(0, 0), (1, 1), (2, 1), (3, 2), (0, 0), (0, 0), (1, 1), (2, 2)].map(segment).into();
        assert_eq!(feeding(&segments), [0, 1, 5, 6]);
        assert!(feeding(&[]).is_empty());
    }
}
