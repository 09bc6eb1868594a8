//! The adapter's own maps, without a place.

use tch::Tensor;

use super::graph::{Graph, Laplacian};

/// An affine map.
#[derive(Debug)]
pub(crate) struct Affine {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Affine {
    pub(crate) fn run(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

/// The adapter behind one attention.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) reduce: Affine,
    pub(crate) gate: Affine,
    pub(crate) out: Affine,
    pub(crate) p: Tensor,
    pub(crate) m: Tensor,
    pub(crate) mu: f64,
    pub(crate) eps: f64,
    pub(crate) heads: i64,
    /// Keep the term of the query itself where queries and values are two sides.
    pub(crate) cross_own: bool,
}

impl Module {
    /// `F~` `[n, queries, d']` of a graph whose nodes have gone through the frozen projection.
    pub(crate) fn spread(&self, projected: &Graph) -> Tensor {
        let split = |nodes: &Tensor| self.reduce.run(nodes).unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let (values, queries) = (split(&projected.values), projected.queries.as_ref().map(split));
        let laplacian =
            Laplacian { p: self.p.shallow_clone(), mu: (self.m.tanh() + 2.0) * self.mu, eps: self.eps };
        let own = queries.is_none() || self.cross_own;
        laplacian.step(&projected.weights, queries.as_ref(), &values, own).transpose(1, 2).flatten(-2, -1)
    }

    /// `y + W_o (GELU(W_g y + b_g) * F~) + b_o` of the projected context `y` `[.., d]` and `F~` `[.., d']`.
    pub(crate) fn join(&self, y: &Tensor, spread: &Tensor) -> Tensor {
        y + self.out.run(&(self.gate.run(y).gelu("none") * spread))
    }
}

/// The adapter beside a feed-forward part.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) down: Affine,
    pub(crate) up: Affine,
}

impl Beside {
    /// `r + U ReLU(D r)`.
    pub(crate) fn run(&self, residual: &Tensor) -> Tensor {
        residual + self.up.run(&self.down.run(residual).relu())
    }
}
