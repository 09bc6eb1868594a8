//! A transformer block: attention and feed-forward part, each with its normalisation and residual sum.

use super::builder::{Builder, same};
use super::{AttentionSpec, MlpSpec, NormSpec};
use crate::site::{Part, Role, SiteId};

/// Where normalisations stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before each part: `x + part(norm(x))`.
    Pre,
    /// After each sum: `norm(x + part(x))`.
    Post,
}

/// A transformer block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerSpec {
    pub(crate) order: Order,
    pub(crate) input: SiteId,
    pub(crate) attention: AttentionSpec,
    pub(crate) attention_out: SiteId,
    pub(crate) attention_norm: NormSpec,
    pub(crate) mlp: MlpSpec,
    pub(crate) mlp_out: SiteId,
    pub(crate) mlp_norm: NormSpec,
    pub(crate) output: SiteId,
}

/// The place before block `path`.
pub(crate) fn input(b: &mut Builder, path: &str, width: usize) -> SiteId {
    b.place(format!("{path}@in"), Role::BlockIn, Part::Other, same(width))
}

/// The place after block `path`.
pub(crate) fn output(b: &mut Builder, path: &str, width: usize) -> SiteId {
    b.place(format!("{path}@out"), Role::BlockOut, Part::Other, same(width))
}

/// The place of the residual sum behind a part of a block.
pub(crate) fn sublayer(b: &mut Builder, path: &str, part: Part, width: usize) -> SiteId {
    b.place(format!("{path}@sublayer"), Role::SublayerOut, part, same(width))
}

#[cfg(feature = "torch")]
pub(crate) use imp::Layer;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{LayerSpec, Order};
    use crate::blocks::attention::Attention;
    use crate::blocks::core::Given;
    use crate::blocks::mlp::Mlp;
    use crate::blocks::norm::Norm;
    use crate::run::{Forward, Layout, OpWeights, State, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded block.
    #[derive(Debug)]
    pub(crate) struct Layer {
        spec: LayerSpec,
        attention: Attention,
        attention_norm: Norm,
        mlp: Mlp,
        mlp_norm: Norm,
    }

    impl Layer {
        pub(crate) fn load(spec: &LayerSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self {
                spec: *spec,
                attention: Attention::load(&spec.attention, sites, weights)?,
                attention_norm: Norm::load(spec.attention_norm, sites, weights)?,
                mlp: Mlp::load(&spec.mlp, sites, weights)?,
                mlp_norm: Norm::load(spec.mlp_norm, sites, weights)?,
            })
        }

        pub(crate) fn run(&self, cx: &Forward<'_>, state: State) -> State {
            let State { hidden, carry, tables } = state;
            let x = same(cx, self.spec.input, hidden);
            let x = self.part(cx, &x, self.spec.attention_out, &self.attention_norm, &|x| {
                self.attention.run(cx, x, Given { rotary: &tables, ..Given::default() })
            });
            let x = self.part(cx, &x, self.spec.mlp_out, &self.mlp_norm, &|x| self.mlp.run(cx, x));
            State { hidden: same(cx, self.spec.output, x), carry, tables }
        }

        fn part(
            &self,
            cx: &Forward<'_>,
            x: &Tensor,
            site: SiteId,
            norm: &Norm,
            run: &dyn Fn(&Tensor) -> Tensor,
        ) -> Tensor {
            match self.spec.order {
                Order::Pre => add(cx, site, run(&norm.run(cx, x)), x, None),
                Order::Post => add(cx, site, run(x), x, Some(norm)),
            }
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.attention.visit(see);
            self.attention_norm.visit(see);
            self.mlp.visit(see);
            self.mlp_norm.visit(see);
        }
    }

    /// A place where the model itself does nothing.
    fn same(cx: &Forward<'_>, site: SiteId, x: Tensor) -> Tensor {
        cx.at_one(site, x, None, &|_, x, _| vec![x[0].shallow_clone()])
    }

    /// What stands behind a part of a block: the residual sum, and in blocks that normalise after it that normalisation.
    pub(crate) fn add(
        cx: &Forward<'_>,
        site: SiteId,
        output: Tensor,
        residual: &Tensor,
        norm: Option<&Norm>,
    ) -> Tensor {
        let op = |layout: &Layout, x: &[Tensor], _: Option<&OpWeights>| {
            let sum = &x[1] + &x[0];
            let Some(norm) = norm else { return vec![sum] };
            // A hook may run this for its own rows alone: the norm's own hooks then see those.
            let groups = cx.groups_within(layout);
            vec![norm.run(&Forward { layout, groups: &groups, ..*cx }, &sum)]
        };
        let mut y = cx.at(site, vec![output, residual.shallow_clone()], None, &op);
        y.remove(0)
    }
}
