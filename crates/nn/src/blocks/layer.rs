//! A transformer block: attention and feed-forward part, each with its normalisation and residual sum.

use super::builder::{Builder, same};
use super::{AttentionSpec, FeedSpec, NormShape, NormSpec};
use crate::site::{Part, Role, SiteId};

/// Where normalisations stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before each part: `x + part(norm(x))`.
    Pre,
    /// After each sum: `norm(x + part(x))`.
    Post,
    /// Before both parts, which see the same input: `x + attention(norm(x)) + mlp(norm(x))`.
    Parallel,
}

/// One part of a block with what stands around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfSpec<T> {
    pub(crate) part: T,
    pub(crate) norm: NormSpec,
    /// A second normalisation, of the part's result.
    pub(crate) after: Option<NormSpec>,
    /// The place that is the part as a whole, of feed-forward parts.
    pub(crate) whole: Option<SiteId>,
    /// The place of the residual sum.
    pub(crate) out: SiteId,
}

/// A transformer block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerSpec {
    pub(crate) order: Order,
    pub(crate) input: SiteId,
    pub(crate) attention: HalfSpec<AttentionSpec>,
    /// Attention on another stack's output, between the two.
    pub(crate) cross: Option<HalfSpec<AttentionSpec>>,
    pub(crate) mlp: HalfSpec<FeedSpec>,
    pub(crate) output: SiteId,
}

/// What a family says of its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Path of the block.
    pub(crate) path: &'a str,
    /// Its number.
    pub(crate) number: u32,
    pub(crate) order: Order,
    pub(crate) norm: NormShape,
}

/// Names of a part's modules below the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfNames<'a> {
    /// The module that the place of the residual sum is named after.
    pub(crate) module: &'a str,
    /// The normalisation.
    pub(crate) norm: &'a str,
    /// The normalisation of the part's result.
    pub(crate) after: Option<&'a str>,
}

impl Frame<'_> {
    /// Describes the block; `attention` and `mlp` describe its parts.
    pub(crate) fn layer<M: Into<FeedSpec>>(
        &self,
        b: &mut Builder,
        names: [HalfNames<'_>; 2],
        attention: impl FnOnce(&mut Builder) -> AttentionSpec,
        mlp: impl FnOnce(&mut Builder) -> M,
    ) -> LayerSpec {
        let input = self.enter(b);
        let attention = self.half(b, names[0], Part::Attention, attention);
        let mlp = self.half(b, names[1], Part::FeedForward, |b| mlp(b).into());
        LayerSpec { order: self.order, input, attention, cross: None, mlp, output: self.leave(b) }
    }

    /// What follows belongs to this block, which begins at the place that is returned.
    pub(crate) fn enter(&self, b: &mut Builder) -> SiteId {
        b.enter(Some(self.number));
        b.place(format!("{}@in", self.path), Role::BlockIn, Part::Other, same(self.norm.width))
    }

    /// The place behind the block.
    pub(crate) fn leave(&self, b: &mut Builder) -> SiteId {
        b.place(format!("{}@out", self.path), Role::BlockOut, Part::Other, same(self.norm.width))
    }

    /// Describes one part, its modules in the order in which they run.
    pub(crate) fn half<T>(
        &self,
        b: &mut Builder,
        names: HalfNames<'_>,
        part: Part,
        describe: impl FnOnce(&mut Builder) -> T,
    ) -> HalfSpec<T> {
        let Self { path, norm: shape, .. } = *self;
        let norm = |b: &mut Builder, name: &str| shape.at(b, format!("{path}.{name}"));
        let early = (self.order != Order::Post).then(|| norm(b, names.norm));
        let whole = (part == Part::FeedForward)
            .then(|| b.place(format!("{path}.{}@feed", names.module), Role::FeedForward, part, same(shape.width)));
        let inner = describe(b);
        let after = names.after.map(|name| norm(b, name));
        let place = format!("{path}.{}@sublayer", names.module);
        let out = b.place(place, Role::SublayerOut, part, same(shape.width));
        let norm = early.unwrap_or_else(|| norm(b, names.norm));
        HalfSpec { part: inner, norm, after, whole, out }
    }
}

#[cfg(feature = "torch")]
pub(crate) use imp::Layer;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use tch::Tensor;

    use super::{HalfSpec, LayerSpec, Order};
    use crate::blocks::attention::Attention;
    use crate::blocks::core::Given;
    use crate::blocks::mlp::Feed;
    use crate::blocks::norm::Norm;
    use crate::run::{Forward, Layout, OpWeights, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded block.
    #[derive(Debug)]
    pub(crate) struct Layer {
        spec: LayerSpec,
        attention: Half<Attention>,
        cross: Option<Half<Attention>>,
        mlp: Half<Feed>,
    }

    /// A loaded part.
    #[derive(Debug)]
    pub(crate) struct Half<T> {
        pub(crate) part: T,
        norm: Norm,
        after: Option<Norm>,
        out: SiteId,
    }

    impl<T> Half<T> {
        pub(crate) fn load<S>(
            spec: &HalfSpec<S>,
            sites: &Sites,
            weights: &Weights<'_>,
            part: impl FnOnce(&S, &Sites, &Weights<'_>) -> Result<T>,
        ) -> Result<Self> {
            let norm = |spec| Norm::load(spec, sites, weights);
            let (part, after) = (part(&spec.part, sites, weights)?, spec.after.map(norm).transpose()?);
            Ok(Self { part, norm: norm(spec.norm)?, after, out: spec.out })
        }

        /// The part with its normalisations and its residual sum. `residual` differs from `x` where parts are parallel.
        pub(crate) fn run(
            &self,
            cx: &Forward<'_>,
            order: Order,
            (x, residual): (&Tensor, &Tensor),
            part: impl FnOnce(&T, &Tensor) -> Tensor,
        ) -> Tensor {
            let early = if order == Order::Post { x.shallow_clone() } else { self.norm.run(cx, x) };
            let mut y = part(&self.part, &early);
            if let Some(after) = &self.after {
                y = after.run(cx, &y);
            }
            add(cx, self.out, y, residual, (order == Order::Post).then_some(&self.norm))
        }

        pub(crate) fn norms(&self) -> impl Iterator<Item = &Norm> {
            self.after.iter().chain([&self.norm])
        }
    }

    impl Layer {
        pub(crate) fn load(spec: &LayerSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            let attention = |spec: &_| Half::load(spec, sites, weights, Attention::load);
            Ok(Self {
                spec: *spec,
                attention: attention(&spec.attention)?,
                cross: spec.cross.as_ref().map(attention).transpose()?,
                mlp: Half::load(&spec.mlp, sites, weights, Feed::load)?,
            })
        }

        /// `[.., width]` to the same shape.
        pub(crate) fn run(&self, cx: &Forward<'_>, hidden: Tensor, given: Given<'_>) -> Tensor {
            let order = self.spec.order;
            let x = same_place(cx, self.spec.input, hidden);
            let own = Given { memory: None, ..given };
            let mut middle = self.attention.run(cx, order, (&x, &x), |part, x| part.run(cx, x, own));
            if let Some(cross) = &self.cross {
                let across = Given { memory: given.memory, ..Given::default() };
                middle = cross.run(cx, order, (&middle, &middle), |part, x| part.run(cx, x, across));
            }
            let seen = if order == Order::Parallel { &x } else { &middle };
            let feed = |part: &Feed, x: &Tensor| match self.spec.mlp.whole {
                Some(whole) => cx.at_part(whole, x, &|cx, x| part.run(cx, x)),
                None => part.run(cx, x),
            };
            let y = self.mlp.run(cx, order, (seen, &middle), feed);
            same_place(cx, self.spec.output, y)
        }

        /// Whether the block attends to another stack's output.
        pub(crate) fn has_cross(&self) -> bool {
            self.cross.is_some()
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for attention in self.cross.iter().chain([&self.attention]) {
                attention.part.visit(see);
                attention.norms().for_each(|norm| norm.visit(see));
            }
            self.mlp.part.visit(see);
            self.mlp.norms().for_each(|norm| norm.visit(see));
        }
    }

    /// A place where the model itself does nothing.
    pub(crate) fn same_place(cx: &Forward<'_>, site: SiteId, x: Tensor) -> Tensor {
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
