//! Attention with its projections: of a sequence on itself or on an encoder's output.

use super::{CoreSpec, LinearSpec};

/// Attention of a sequence on itself, or of a decoder's sequence on the encoder's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSpec {
    pub(crate) query: LinearSpec,
    pub(crate) key: LinearSpec,
    pub(crate) value: LinearSpec,
    pub(crate) out: LinearSpec,
    pub(crate) core: CoreSpec,
}

#[cfg(feature = "torch")]
pub(crate) use imp::Attention;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{AttentionSpec, CoreSpec};
    use crate::blocks::core::Given;
    use crate::blocks::linear::Linear;
    use crate::blocks::rotary::rotate;
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// Loaded attention.
    #[derive(Debug)]
    pub(crate) struct Attention {
        query: Linear,
        key: Linear,
        value: Linear,
        out: Linear,
        core: CoreSpec,
    }

    impl Attention {
        pub(crate) fn load(spec: &AttentionSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let (query, key, value, out) = (load(spec.query)?, load(spec.key)?, load(spec.value)?, load(spec.out)?);
            Ok(Self { query, key, value, out, core: spec.core })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor, given: Given<'_>) -> Tensor {
            let split = |x: Tensor| x.unflatten(-1, [-1, self.core.heads.dim as i64]); // [.., h, d]
            let turn = |x: Tensor| match given.rotary {
                [cos, sin, ..] => rotate(&x, cos, sin),
                _ => x,
            };
            let query = turn(split(self.query.run(cx, x)));
            // On an encoder's output, keys and values are made where that lies.
            let across = given.memory.map(|memory| (cx.across(), memory));
            let (there, seen) = across.as_ref().map_or((cx, x), |(there, memory)| (there, *memory));
            let key = turn(split(self.key.run(there, seen)));
            let value = split(self.value.run(there, seen));
            let context = self.core.run(cx, there.layout, vec![query, key, value], given.bias);
            self.out.run(cx, &context.flatten(-2, -1))
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for linear in [&self.query, &self.key, &self.value, &self.out] {
                linear.visit(see);
            }
        }
    }
}
