//! A feed-forward part of experts: a router gives every token the `k` likeliest, weighed by their share of the
//! likelihood (Jiang et al., *Mixtral of Experts*, 2024).

use super::builder::{Builder, Module};
use super::{Activation, LinearSpec};
use crate::backbone::Pieces;
use crate::site::{Dims, Part, Role, SiteId, WeightLayout};

/// A feed-forward part of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseSpec {
    pub(crate) router: LinearSpec,
    /// Gate and first map one behind the other.
    pub(crate) gate_up: ExpertsSpec,
    pub(crate) down: ExpertsSpec,
    /// Experts a token.
    pub(crate) chosen: usize,
    pub(crate) activation: Activation,
}

/// Affine maps in one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertsSpec {
    pub(crate) site: SiteId,
}

impl ExpertsSpec {
    /// `count` maps in the parameter `path`.
    pub(crate) fn new(
        b: &mut Builder,
        path: &str,
        part: Part,
        (count, input, output): (usize, usize, usize),
        pieces: Pieces,
    ) -> Self {
        let dims = Dims { input, output, heads: None };
        let module = Module::new(path, Role::Experts, part, dims, WeightLayout::OutIn);
        Self { site: b.module(Module { weight: Some(path), stacked: Some((count, pieces)), ..module }) }
    }
}

impl SparseSpec {
    /// The router: a map without bias that PEFT cannot wrap.
    pub(crate) fn router(b: &mut Builder, path: String, width: usize, experts: usize) -> LinearSpec {
        let dims = Dims { input: width, output: experts, heads: None };
        LinearSpec::of(b, Module::new(path, Role::Router, Part::Other, dims, WeightLayout::OutIn))
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Sparse;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{ExpertsSpec, SparseSpec};
    use crate::blocks::Activation;
    use crate::blocks::linear::Linear;
    use crate::run::{Forward, Layout, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// Loaded maps.
    #[derive(Debug)]
    struct Experts {
        site: SiteId,
        weights: OpWeights,
    }

    /// The loaded part.
    #[derive(Debug)]
    pub(crate) struct Sparse {
        router: Linear,
        gate_up: Experts,
        down: Experts,
        chosen: i64,
        activation: Activation,
    }

    impl Sparse {
        pub(crate) fn load(spec: &SparseSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let experts = |ExpertsSpec { site }| Ok(Experts { site, weights: weights.of(&sites[site])? });
            Ok(Self {
                router: Linear::load(spec.router, sites, weights)?,
                gate_up: experts(spec.gate_up)?,
                down: experts(spec.down)?,
                chosen: spec.chosen as i64,
                activation: spec.activation,
            })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor) -> Tensor {
            let shares = self.router.run(cx, x).softmax(-1, Kind::Float); // [.., experts]
            let (shares, experts) = shares.topk(self.chosen, -1, true, true); // [.., k]
            let shares = &shares / shares.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
            let mut size = x.size();
            size.insert(size.len() - 1, self.chosen);
            let x = x.unsqueeze(-2).expand(size, false); // [.., k, width]
            let halves = self.gate_up.run(cx, x, &experts).chunk(2, -1);
            let inner = self.activation.run(&halves[0]) * &halves[1];
            let y = self.down.run(cx, inner, &experts);
            let sum = (&y * shares.unsqueeze(-1)).sum_dim_intlist([-2i64].as_slice(), false, Kind::Float);
            sum.to_kind(y.kind())
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.router.visit(see);
            for experts in [&self.gate_up, &self.down] {
                see(experts.site, &experts.weights);
            }
        }
    }

    impl Experts {
        /// `[.., k, in]` by the maps `[.., k]` to `[.., k, out]`.
        fn run(&self, cx: &Forward<'_>, x: Tensor, experts: &Tensor) -> Tensor {
            let op = |_: &Layout, x: &[Tensor], own: Option<&OpWeights>| {
                vec![by_expert(&own.unwrap_or(&self.weights).weight, &x[0], &x[1])]
            };
            cx.at(self.site, vec![x, experts.shallow_clone()], Some(&self.weights), &op).remove(0)
        }
    }

    /// Rows sorted by expert, one product for each expert that is used, and back.
    fn by_expert(weight: &Tensor, x: &Tensor, experts: &Tensor) -> Tensor {
        let [count, output, _] = weight.size()[..] else { unreachable!("experts have three axes") };
        let rows = x.flatten(0, -2);
        let experts = experts.flatten(0, -1);
        let order = experts.argsort_stable(true, 0, false);
        let used: Vec<i64> = (0..count).map(|expert| experts.eq(expert).sum(Kind::Int64).int64_value(&[])).collect();
        let parts = rows.index_select(0, &order).split_with_sizes(&used, 0);
        let outputs: Vec<_> = parts
            .iter()
            .enumerate()
            .filter(|(_, part)| part.size()[0] > 0)
            .map(|(expert, part)| part.matmul(&weight.get(expert as i64).tr()))
            .collect();
        let back = order.argsort(0, false);
        let mut size = x.size();
        if let Some(last) = size.last_mut() {
            *last = output;
        }
        Tensor::cat(&outputs, 0).index_select(0, &back).reshape(size)
    }
}
