//! Table lookups: tokens, kinds of tokens, learnt positions.

use super::builder::{Builder, Module};
use crate::site::{Dims, Part, Role, SiteId, WeightLayout};

/// A table of `rows` vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedSpec {
    pub(crate) site: SiteId,
    /// What rows are multiplied by.
    pub(crate) scale: Option<f64>,
}

impl EmbedSpec {
    pub(crate) fn new(b: &mut Builder, path: &str, rows: usize, width: usize) -> Self {
        let dims = Dims { input: rows, output: width, heads: None };
        let site = b.module(Module::new(path, Role::Embed, Part::Other, dims, WeightLayout::Plain));
        Self { site, scale: None }
    }

    /// A table of `dims.0` rows whose weight is the tensor `weight` of another module.
    pub(crate) fn tied(b: &mut Builder, path: &str, dims: (usize, usize), weight: &str) -> Self {
        let dims = Dims { input: dims.0, output: dims.1, heads: None };
        let module = Module::new(path, Role::Embed, Part::Other, dims, WeightLayout::Plain);
        Self { site: b.module(Module { weight: Some(weight), ..module }), scale: None }
    }

    /// The same with rows multiplied by a number.
    pub(crate) fn times(self, b: &mut Builder, scale: Option<f64>) -> Self {
        b.scale(self.site, scale.unwrap_or(1.0));
        Self { scale, ..self }
    }
}

/// A table of positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PositionSpec {
    pub(crate) table: EmbedSpec,
    pub(crate) count: Count,
}

/// How tokens are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// The first token has the row of this number.
    From(usize),
    /// Tokens other than this one are counted from the number behind it; it has its own number's row.
    Behind(usize),
}

#[cfg(feature = "torch")]
pub(crate) use imp::{Embed, Positions};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::{Kind, Tensor};

    use super::{Count, EmbedSpec, PositionSpec};
    use crate::run::{Form, Forward, Layout, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded table.
    #[derive(Debug)]
    pub(crate) struct Embed {
        spec: EmbedSpec,
        weights: OpWeights,
    }

    impl Embed {
        crate::blocks::alike::at_site!(EmbedSpec);

        /// Numbers of any shape to `[.., width]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, ids: &Tensor) -> Tensor {
            self.run_beside(cx, ids, None)
        }

        /// The same beside features that only hooks look at.
        pub(crate) fn run_beside(&self, cx: &Forward<'_>, ids: &Tensor, features: Option<&Tensor>) -> Tensor {
            let x = std::iter::once(ids).chain(features).map(Tensor::shallow_clone).collect();
            let mut rows = cx.at(self.spec.site, x, Some(&self.weights), &|_, x, own| {
                let rows = Tensor::embedding(&own.unwrap_or(&self.weights).weight, &x[0], -1, false, false);
                vec![match self.spec.scale {
                    // Rounded as the weights are, like the scale that the model itself keeps.
                    Some(scale) => &rows * Tensor::from(scale).to_kind(rows.kind()).to_device(rows.device()),
                    None => rows,
                }]
            });
            rows.remove(0)
        }
    }

    /// A loaded table of positions.
    #[derive(Debug)]
    pub(crate) struct Positions {
        table: Embed,
        count: Count,
    }

    impl Positions {
        pub(crate) fn load(spec: PositionSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self { table: Embed::load(spec.table, sites, weights)?, count: spec.count })
        }

        /// The rows of the positions of `ids`, `[.., width]`.
        pub(crate) fn run(&self, cx: &Forward<'_>, ids: &Tensor) -> Tensor {
            let plain = cx.layout.positions().expand_as(ids);
            let numbers = match self.count {
                Count::From(0) => plain,
                Count::From(first) => plain + first as i64,
                Count::Behind(pad) => behind(cx.layout, ids, &plain, pad as i64),
            };
            self.table.run(cx, &numbers)
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.table.visit(see);
        }
    }

    /// Numbers of tokens that are not `pad`, counted in each sequence.
    fn behind(layout: &Layout, ids: &Tensor, plain: &Tensor, pad: i64) -> Tensor {
        let real = ids.ne(pad).to_kind(Kind::Int64);
        // What a sequence's index has more than its count: the number of paddings up to there.
        let skipped = (real.logical_not().to_kind(Kind::Int64)).cumsum(-1, Kind::Int64);
        let skipped = match layout.form() {
            Form::Padded { .. } => skipped,
            Form::Packed { offsets } => {
                // The count goes on over borders: take off what it was before each sequence.
                let before: Vec<i64> = offsets[..offsets.len() - 1]
                    .iter()
                    .zip(layout.lengths())
                    .flat_map(|(start, length)| std::iter::repeat_n(*start as i64, *length))
                    .collect();
                let zero = Tensor::zeros([1], (Kind::Int64, skipped.device()));
                let starts = Tensor::from_slice(&before).to_device(skipped.device());
                &skipped - Tensor::cat(&[&zero, &skipped], 0).index_select(0, &starts)
            }
        };
        (plain + 1 - skipped) * real + pad
    }
}
