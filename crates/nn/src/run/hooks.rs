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

/// The frozen operation of a site, for the rows at hand.
#[derive(Clone, Copy)]
pub struct BaseOp<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) weights: Option<&'a OpWeights>,
    pub(crate) op: &'a Op<'a>,
}

impl BaseOp<'_> {
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
            let inner = BaseOp { layout, weights: own.or(self.weights), op: &op };
            inner.through(&SiteCx { layout, ..*cx }, rest, x.iter().map(Tensor::shallow_clone).collect())
        };
        first.around(cx, x, &BaseOp { layout: self.layout, weights: self.weights, op: &op })
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
