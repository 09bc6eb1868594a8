//! Bias by relative position: distances between a query and a key fall into classes, exact ones near by and ever wider
//! ones farther off, and every head has one learnt number a class (Raffel et al., *Exploring the Limits of Transfer
//! Learning with a Unified Text-to-Text Transformer*, 2020).

use super::builder::Builder;
use super::embedding::EmbedSpec;

/// How distances fall into classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distances {
    /// Number of classes.
    pub(crate) buckets: usize,
    /// From here on all distances are of one class.
    pub(crate) farthest: usize,
    /// Keys behind the query have classes of their own; otherwise they are never seen.
    pub(crate) both_ways: bool,
}

/// A table of biases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelativeSpec {
    pub(crate) table: EmbedSpec,
    pub(crate) distances: Distances,
}

impl RelativeSpec {
    /// The table `path`, `[buckets, heads]`.
    pub(crate) fn new(b: &mut Builder, path: &str, heads: usize, distances: Distances) -> Self {
        Self { table: EmbedSpec::new(b, path, distances.buckets, heads), distances }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Relative;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{Distances, RelativeSpec};
    use crate::blocks::embedding::Embed;
    use crate::run::{Forward, Layout, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// The loaded table.
    #[derive(Debug)]
    pub(crate) struct Relative {
        spec: RelativeSpec,
        table: Embed,
    }

    impl Relative {
        pub(crate) fn load(spec: RelativeSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self { spec, table: Embed::load(spec.table, sites, weights)? })
        }

        /// The bias of every class, `[1, buckets, heads]`; one row a sequence when an adapter changes the table.
        pub(crate) fn values(&self, cx: &Forward<'_>) -> Tensor {
            let buckets = self.spec.distances.buckets;
            let classes = Tensor::arange(buckets as i64, (Kind::Int64, cx.layout.device()));
            if !self.is_active(cx) {
                return self.table.run(&Forward { groups: &[], ..*cx }, &classes).unsqueeze(0);
            }
            let sequences = cx.layout.sequences();
            let samples = cx.layout.samples().to_vec();
            let rows = Layout::padded(vec![buckets; sequences], buckets, samples, cx.layout.device())
                .of_tasks(cx.layout.tasks().to_vec());
            let classes = classes.unsqueeze(0).expand([sequences as i64, -1], false);
            self.table.run(&Forward { layout: &rows, ..*cx }, &classes)
        }

        /// Whether an adapter changes the table: then gradients flow through [`Relative::values`].
        pub(crate) fn is_active(&self, cx: &Forward<'_>) -> bool {
            cx.is_active(self.spec.table.site)
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.table.visit(see);
        }
    }

    impl Distances {
        /// `values` `[1 or n, buckets, heads]` to `[1 or n, heads, width, seen]`: the last `width` of `seen` keys are the
        /// queries themselves.
        pub(crate) fn bias(&self, values: &Tensor, width: i64, seen: i64) -> Tensor {
            let whole = (Kind::Int64, values.device());
            let queries = Tensor::arange_start(seen - width, seen, whole).unsqueeze(1);
            let classes = self.classes(&(Tensor::arange(seen, whole).unsqueeze(0) - queries)); // [w, s]
            values.index_select(1, &classes.flatten(0, 1)).unflatten(1, [width, seen]).permute([0, 3, 1, 2])
        }

        /// Positions of keys minus those of queries, int64, to classes.
        fn classes(&self, distance: &Tensor) -> Tensor {
            let (distance, side, buckets) = if self.both_ways {
                let half = (self.buckets / 2) as i64;
                (distance.abs(), distance.gt(0).to_kind(Kind::Int64) * half, half)
            } else {
                (distance.clamp_max(0).neg(), distance.zeros_like(), self.buckets as i64)
            };
            let exact = buckets / 2;
            let growth = (self.farthest as f64 / exact as f64).ln();
            let far = (distance.to_kind(Kind::Float) / exact as f64).log() / growth * (buckets - exact) as f64;
            let far = (far.to_kind(Kind::Int64) + exact).clamp_max(buckets - 1);
            side + distance.where_self(&distance.lt(exact), &far)
        }
    }
}
