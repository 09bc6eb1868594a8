//! Attention with its projections: of a sequence on itself or on an encoder's output.

use super::builder::Builder;
use super::{Core, CoreSpec, LinearSpec, NormSpec};
use crate::site::Part;

/// Attention of a sequence on itself, or of a decoder's sequence on the encoder's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSpec {
    pub(crate) maps: Maps,
    /// Normalisations of the heads of queries and keys, before rotation.
    pub(crate) norms: Option<[NormSpec; 2]>,
    pub(crate) core: CoreSpec,
    pub(crate) out: LinearSpec,
}

/// How queries, keys and values are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Maps {
    /// By a map each.
    Split([LinearSpec; 3]),
    /// By one map whose result is queries, keys and values one behind the other; `by_head`, those of each head are.
    Fused { map: LinearSpec, by_head: bool },
}

impl AttentionSpec {
    /// Attention with a map each for queries, keys and values, whose names are given; `path` names the module.
    pub(crate) fn split(
        b: &mut Builder,
        (path, names): (&str, [String; 4]),
        (width, core): (usize, Core),
        (bias, out_bias): (bool, bool),
    ) -> Self {
        let ([query, key, value, out], (all, shared)) = (names, core.widths());
        let maps = [(query, Part::Query, all), (key, Part::Key, shared), (value, Part::Value, shared)]
            .map(|(name, part, output)| LinearSpec::new(b, name, part, width, output, bias));
        let core = core.at(b, path);
        let out = LinearSpec::new(b, out, Part::AttnOut, all, width, out_bias);
        Self { maps: Maps::Split(maps), norms: None, core, out }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Attention;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{AttentionSpec, CoreSpec, Maps};
    use crate::blocks::core::Given;
    use crate::blocks::linear::Linear;
    use crate::blocks::norm::Norm;
    use crate::blocks::rotary::rotate;
    use crate::run::{Forward, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// Loaded attention.
    #[derive(Debug)]
    pub(crate) struct Attention {
        maps: Vec<Linear>,
        by_head: bool,
        norms: Option<[Norm; 2]>,
        core: CoreSpec,
        out: Linear,
    }

    impl Attention {
        pub(crate) fn load(spec: &AttentionSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let load = |linear| Linear::load(linear, sites, weights);
            let norm = |spec| Norm::load(spec, sites, weights);
            let (maps, by_head) = match spec.maps {
                Maps::Split(maps) => (maps.into_iter().map(load).collect::<Result<_>>()?, false),
                Maps::Fused { map, by_head } => (vec![load(map)?], by_head),
            };
            let norms = match spec.norms {
                Some([query, key]) => Some([norm(query)?, norm(key)?]),
                None => None,
            };
            Ok(Self { maps, by_head, norms, core: spec.core, out: load(spec.out)? })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, x: &Tensor, given: Given<'_>) -> Tensor {
            let turn = |x: Tensor| match given.rotary {
                [cos, sin, ..] => rotate(&x, cos, sin),
                _ => x,
            };
            // On an encoder's output, keys and values are made where that lies.
            let across = given.memory.map(|memory| (cx.across(), memory));
            let there = across.as_ref().map_or((cx, x), |(there, memory)| (there, *memory));
            let [mut query, mut key, value] = self.project((cx, x), there);
            if let Some([of_query, of_key]) = &self.norms {
                (query, key) = (of_query.run(cx, &query), of_key.run(there.0, &key));
            }
            let context = self.core.run(cx, there.0.layout, vec![turn(query), turn(key), value], given.bias);
            self.out.run(cx, &context.flatten(-2, -1))
        }

        /// Queries, keys and values, each `[.., h, d]`; keys and values are those of `there`.
        fn project(&self, (cx, x): (&Forward<'_>, &Tensor), there: (&Forward<'_>, &Tensor)) -> [Tensor; 3] {
            let heads = self.core.heads;
            let dim = heads.dim as i64;
            let split = |x: Tensor| x.unflatten(-1, [-1, dim]); // [.., h, d]
            match self.maps.as_slice() {
                [query, key, value] => {
                    [split(query.run(cx, x)), split(key.run(there.0, there.1)), split(value.run(there.0, there.1))]
                }
                [all, ..] if self.by_head => {
                    let parts = all.run(cx, x).unflatten(-1, [-1, 3 * dim]); // [.., h, 3 d]
                    [0, 1, 2].map(|i| parts.narrow(-1, i * dim, dim))
                }
                [all, ..] => {
                    let (all, kv) = (split(all.run(cx, x)), heads.kv as i64); // [.., h + 2 kv, d]
                    let query = heads.query as i64;
                    [(0, query), (query, kv), (query + kv, kv)].map(|(start, count)| all.narrow(-2, start, count))
                }
                [] => unreachable!("attention has maps"),
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for linear in self.maps.iter().chain([&self.out]) {
                linear.visit(see);
            }
            for norm in self.norms.iter().flatten() {
                norm.visit(see);
            }
        }
    }
}
