//! What a method gives to a forward pass, and what it is given.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::Tensor;

use super::Layout;
use crate::site::{Site, SiteId};

/// Consecutive sequences of a batch and the hooks that see them. Groups are in order and do not overlap; sequences of
/// no group run the bare model. A group's gradients are those it would have alone.
pub struct Group<'a> {
    /// Sequences, by number in the batch.
    pub rows: Range<usize>,
    /// The hooks, usually an adapter.
    pub hooks: &'a dyn HookSet,
}

/// The hooks of one adapter.
pub trait HookSet {
    /// The hook at a site, if there is one. Must give the same answer throughout a forward pass.
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook>;

    /// Optimiser steps done by the training that these hooks are of, where several trainings share a pass; `None` when
    /// that is [`super::Forward::step`].
    fn step(&self) -> Option<u64> {
        None
    }

    /// Who must see the last hidden states of a pass without gradient before every pass, if anyone must.
    fn scoring(&self) -> Option<&dyn Scoring> {
        None
    }
}

/// Number of the pass that [`Scoring`] sees.
pub const SCORING_PASS: u32 = u32::MAX;

/// Hooks that depend on what the whole model makes of the rows: first they see the last hidden states of a pass of their
/// own ([`SCORING_PASS`]), then they act.
pub trait Scoring {
    /// The last hidden states of the group's rows, behind the last normalisation, without gradient. `pass` is the pass that
    /// follows.
    fn scored(&self, pass: &ScoredPass<'_>, hidden: &Tensor);
}

/// A pass that follows a scoring pass.
#[derive(Clone, Copy)]
pub struct ScoredPass<'a> {
    /// The group's rows.
    pub layout: &'a Layout,
    /// As [`SiteCx::train`].
    pub train: bool,
    /// As [`SiteCx::step`].
    pub step: u64,
    /// As [`SiteCx::pass`].
    pub pass: u32,
}

/// The bare model.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl HookSet for NoHooks {
    fn at(&self, _: SiteId) -> Option<&dyn SiteHook> {
        None
    }
}

/// What a method does at one site. `x` and `y` are as [`crate::Role`] says, cut down to the group's own rows.
pub trait SiteHook {
    /// True when the hook only looks at the base operation's result: all groups then share one run over all rows, and
    /// [`SiteHook::after`] is called. False when it changes inputs, lengths or weights: [`SiteHook::around`] is called
    /// for the group's rows alone.
    fn shares_base(&self) -> bool {
        true
    }

    /// Turns the base result `y` into this method's.
    fn after(&self, _cx: &SiteCx<'_>, _x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        y
    }

    /// Runs the site: `base` as often as wanted, with any inputs or weights.
    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        self.after(cx, &x, y)
    }
}

/// The other ranks, for hooks that give rows to them. All ranks must make the same calls in the same order; gradients are
/// not tracked. A call that fails gives zeros, and whoever lent this knows of it.
pub trait Peers {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;
    /// How many ranks there are.
    fn world(&self) -> usize;
    /// The numbers of all ranks, in rank order; as many on every rank.
    fn numbers(&self, mine: &[i64]) -> Vec<Vec<i64>>;
    /// Cuts `[world * k, ..]` into a piece for each rank and gives the pieces that came, in rank order.
    fn swap(&self, pieces: &Tensor) -> Tensor;
}

/// Where and when a hook runs.
#[derive(Clone, Copy)]
pub struct SiteCx<'a> {
    /// The site.
    pub site: &'a Site,
    /// The group's rows.
    pub layout: &'a Layout,
    /// At [`crate::Role::AttnKv`], how keys and values lie: the encoder's layout of the same sequences in attention on
    /// an encoder's output, else `layout`.
    pub keys: &'a Layout,
    /// Training: dropout and other noise are on.
    pub train: bool,
    /// Optimiser steps done, the key of per-step draws.
    pub step: u64,
    /// Number of the pass within a step.
    pub pass: u32,
    /// The other ranks, in passes in which all go in step.
    pub peers: Option<&'a dyn Peers>,
}

/// Weights of a site, in the layout of its [`crate::SiteWeight`].
#[derive(Debug)]
pub struct OpWeights {
    /// The weight.
    pub weight: Tensor,
    /// The bias.
    pub bias: Option<Tensor>,
}

impl OpWeights {
    /// A second handle to the same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }
}

/// The operation of a site: inputs and, when they stand in for the frozen ones, weights.
pub type Op<'a> = dyn Fn(&Layout, &[Tensor], Option<&OpWeights>) -> Vec<Tensor> + 'a;

/// The operation of a site within which others lie: rows with their layout, and who acts inside.
pub(crate) type Inside<'a> = dyn Fn(&Layout, &[Group<'_>], &Tensor) -> Tensor + 'a;

/// The frozen operation of a site, for the rows at hand.
#[derive(Clone, Copy)]
pub struct BaseOp<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) weights: Option<&'a OpWeights>,
    pub(crate) op: &'a Op<'a>,
    pub(crate) inside: Option<&'a Inside<'a>>,
}

impl<'a> BaseOp<'a> {
    /// The same operation on other rows.
    #[must_use]
    pub fn over(&self, layout: &'a Layout) -> Self {
        Self { layout, ..*self }
    }

    /// Runs a site within which others lie on any rows, with the hooks of `groups` inside in place of the batch's. `None` at
    /// sites of other roles than [`crate::Role::FeedForward`].
    #[must_use]
    pub fn run_inside(&self, layout: &Layout, groups: &[Group<'_>], x: &Tensor) -> Option<Tensor> {
        self.inside.map(|inside| inside(layout, groups, x))
    }

    /// The frozen operation.
    #[must_use]
    pub fn run(&self, x: &[Tensor]) -> Vec<Tensor> {
        (self.op)(self.layout, x, None)
    }

    /// The same operation with other weights, of the same shapes. Inputs must have the weights' kind.
    #[must_use]
    pub fn run_with(&self, weights: &OpWeights, x: &[Tensor]) -> Vec<Tensor> {
        (self.op)(self.layout, x, Some(weights))
    }

    /// The same operation for consecutive rows of those at hand, which lie as `layout` says.
    #[must_use]
    pub fn at<'b>(&'b self, layout: &'b Layout) -> BaseOp<'b> {
        BaseOp { layout, ..*self }
    }

    /// Runs the operation behind a chain of hooks: the first sees the inputs first and the result last. Weights that a
    /// hook runs it with are, for the hooks behind it, the frozen ones.
    #[must_use]
    pub fn through(&self, cx: &SiteCx<'_>, hooks: &[&dyn SiteHook], x: Vec<Tensor>) -> Vec<Tensor> {
        let Some((first, rest)) = hooks.split_first() else { return self.run(&x) };
        let op = |layout: &Layout, x: &[Tensor], own: Option<&OpWeights>| {
            let op = |layout: &Layout, x: &[Tensor], given: Option<&OpWeights>| (self.op)(layout, x, given.or(own));
            let inner = BaseOp { layout, weights: own.or(self.weights), op: &op, inside: self.inside };
            inner.through(&SiteCx { layout, ..*cx }, rest, x.iter().map(Tensor::shallow_clone).collect())
        };
        first.around(cx, x, &BaseOp { op: &op, ..*self })
    }

    /// The frozen weights; `None` at sites without.
    #[must_use]
    pub fn weights(&self) -> Option<&OpWeights> {
        self.weights
    }
}

/// Hooks that run sites with other weights, such as those of a merged adapter.
#[derive(Debug, Default)]
pub struct Replaced(BTreeMap<SiteId, Stand>);

#[derive(Debug)]
struct Stand(OpWeights);

impl Replaced {
    /// Replaces the weights of one site.
    pub fn insert(&mut self, site: SiteId, weights: OpWeights) {
        self.0.insert(site, Stand(weights));
    }
}

impl HookSet for Replaced {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.0.get(&site).map(|stand| stand as &dyn SiteHook)
    }
}

impl SiteHook for Stand {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        base.run_with(&self.0, &x)
    }
}
