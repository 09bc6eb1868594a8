//! One step of message passing on the graph of attention: queries are connected to the values that they look at, and a
//! connection counts by how different its ends are.
//!
//! For a node `i` with features `F_i`, neighbours `j` and weights `A_ij` of attention:
//! `G_ij = |sqrt(A_ij + e) (F_j - F_i) + e|`, `A'_ij = A_ij G_ij^(p - 2)`, `alpha_i = 1 / (sum_j A'_ij + 2 mu / p)`,
//! `beta_i = alpha_i 2 mu / p`, and `F~_i = alpha_i sum_j A'_ij F_j + beta_i F_i`.
//!
//! `p = 2` is plain averaging; below, neighbours that are alike count more, above, those that differ. The edge of a node
//! to itself has the length `e` a channel, which below 2 outweighs all others: lengths are taken of differences, as no
//! other way to them is exact enough in float32, and its difference is the constant zero, whose gradient is none.

use tch::{Kind, Tensor};

/// Elements of differences that are made at once.
const AT_ONCE: i64 = 1 << 24;

/// The graph of some sequences: who looks at whom.
#[derive(Debug)]
pub(crate) struct Graph {
    /// Weights of attention `[n, heads, queries, values]`, pooled like the values.
    pub(crate) weights: Tensor,
    /// Projected values `[n, values, d]`, heads side by side.
    pub(crate) values: Tensor,
    /// Projected queries `[n, queries, d]`; none where a token is one node, its value.
    pub(crate) queries: Option<Tensor>,
}

impl Graph {
    /// The graph as one matrix over all nodes `[n, heads, nodes, nodes]`: queries and values are two sides, each seen by
    /// the other, unless they are the same nodes.
    pub(crate) fn adjacency(&self) -> Tensor {
        if self.queries.is_none() {
            return self.weights.shallow_clone();
        }
        let size = self.weights.size();
        let empty = |side: i64| Tensor::zeros([size[0], size[1], side, side], (self.weights.kind(), self.weights.device()));
        let upper = Tensor::cat(&[&empty(size[2]), &self.weights], -1);
        let lower = Tensor::cat(&[&self.weights.transpose(2, 3), &empty(size[3])], -1);
        Tensor::cat(&[upper, lower], 2)
    }

    /// All nodes `[n, nodes, d]`, in the order of [`Graph::adjacency`].
    pub(crate) fn nodes(&self) -> Tensor {
        match &self.queries {
            Some(queries) => Tensor::cat(&[queries, &self.values], 1),
            None => self.values.shallow_clone(),
        }
    }
}

/// The exponents of one site.
#[derive(Debug)]
pub(crate) struct Laplacian {
    /// `[1]`.
    pub(crate) p: Tensor,
    /// `[1]`.
    pub(crate) mu: Tensor,
    pub(crate) eps: f64,
}

impl Laplacian {
    /// `F~` of the queries, `[n, heads, queries, w]`, from features `[n, heads, .., w]` of both sides; `queries` are none
    /// where they are the values. `own`: add the term of the node itself.
    pub(crate) fn step(&self, weights: &Tensor, queries: Option<&Tensor>, values: &Tensor, own: bool) -> Tensor {
        let weights = self.reweighted(weights, queries, values);
        let pull = &self.mu * 2.0 / &self.p; // [1]
        let alpha = (weights.sum_dim_intlist([-1i64].as_slice(), true, weights.kind()) + &pull).reciprocal();
        let sum = weights.matmul(values);
        let sum = if own { sum + queries.unwrap_or(values) * pull } else { sum };
        sum * alpha
    }

    /// `A'`, some queries at a time.
    pub(crate) fn reweighted(&self, weights: &Tensor, queries: Option<&Tensor>, values: &Tensor) -> Tensor {
        let size = values.size(); // [n, h, k, w]
        let count = weights.size()[2];
        let rows = (AT_ONCE / size.iter().product::<i64>().max(1)).clamp(1, count.max(1));
        let from = queries.unwrap_or(values);
        let part = |start: i64| {
            let length = rows.min(count - start);
            let mut apart = values.unsqueeze(2) - from.narrow(2, start, length).unsqueeze(3); // [n, h, rows, k, w]
            if queries.is_none() {
                let device = values.device();
                let own = Tensor::ones([length, size[2]], (Kind::Bool, device)).tril(start).triu(start);
                apart = apart.masked_fill(&own.unsqueeze(-1), 0.0);
            }
            let weights = weights.narrow(2, start, length);
            let scaled = (&weights + self.eps).sqrt().unsqueeze(-1) * apart + self.eps;
            let length = scaled.square().sum_dim_intlist([-1i64].as_slice(), false, scaled.kind()).sqrt();
            weights * length.pow(&(&self.p - 2.0))
        };
        let parts: Vec<_> = (0..count).step_by(usize::try_from(rows).unwrap_or(1)).map(part).collect();
        Tensor::cat(&parts, 2)
    }
}

/// Adaptive averages over the values of each sequence: `[n, to, width]`, rows that sum to one for as many of `to` as
/// there are bins. Bin `i` of `s` covers the values from `floor(i l / s)` to `ceil((i + 1) l / s) - 1` of `l`.
pub(crate) fn pooling(lengths: &[usize], bins: &[usize], to: usize, width: usize) -> Vec<f64> {
    let mut all = vec![0.0; lengths.len() * to * width];
    for (n, (length, bins)) in lengths.iter().zip(bins).enumerate() {
        for bin in 0..*bins {
            let (start, end) = (bin * length / bins, ((bin + 1) * length).div_ceil(*bins));
            let row = (n * to + bin) * width;
            all[row + start..row + end].fill(1.0 / (end - start) as f64);
        }
    }
    all
}
