//! One forward pass: who is in the batch, and how a site's base operation and the groups' hooks come together.

use tch::Tensor;

use super::Layout;
use super::hooks::{BaseOp, Group, Inside, Op, OpWeights, Peers, SiteCx, SiteHook};
use crate::site::{SiteId, Sites};

/// What is true during one forward pass.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// The backbone's sites.
    pub sites: &'a Sites,
    /// The batch: the sequences of the only or first stack.
    pub layout: &'a Layout,
    /// The same sequences in the second stack, such as the decoder's (see [`crate::Reads`]); `None` when they lie there as
    /// in the first. Within that stack the two
    /// change places, so that [`Forward::layout`] is always the layout of the tensors at hand.
    pub second: Option<&'a Layout>,
    /// The adapters in it.
    pub groups: &'a [Group<'a>],
    /// Training: dropout and other noise of the adapters are on. The frozen model itself never drops anything.
    pub train: bool,
    /// Optimiser steps done, the key of per-step draws.
    pub step: u64,
    /// Number of the pass within a step.
    pub pass: u32,
    /// The other ranks, in passes in which all go in step.
    pub peers: Option<&'a dyn Peers>,
}

/// Consecutive rows with the hook that acts on them.
struct Run<'a> {
    rows: std::ops::Range<usize>,
    hook: Option<&'a dyn SiteHook>,
}

/// A site's operation.
#[derive(Clone, Copy)]
struct Base<'a> {
    weights: Option<&'a OpWeights>,
    op: &'a Op<'a>,
    inside: Option<&'a Inside<'a>>,
}

impl<'a> Forward<'a> {
    /// A pass for evaluation.
    #[must_use]
    pub fn eval(sites: &'a Sites, layout: &'a Layout, groups: &'a [Group<'a>]) -> Self {
        Self { sites, layout, second: None, groups, train: false, step: 0, pass: 0, peers: None }
    }

    /// The same pass with the layout of the second stack.
    #[must_use]
    pub fn beside(self, second: Option<&'a Layout>) -> Self {
        Self { second, ..self }
    }

    /// The pass as the other stack sees it: in the second layout, or in the same one when there is no second.
    pub(crate) fn across(&self) -> Self {
        let second = self.second.unwrap_or(self.layout);
        Self { layout: second, second: Some(self.layout), ..*self }
    }

    /// Refuses groups that overlap, are out of order or reach beyond the batch, and layouts of different batches.
    ///
    /// # Panics
    /// When they do: a defect of the caller.
    pub(crate) fn check(&self) {
        let mut next = 0;
        for Group { rows, .. } in self.groups {
            assert!(
                rows.start >= next && rows.end >= rows.start,
                "groups overlap or are out of order at row {}",
                rows.start
            );
            next = rows.end;
        }
        let sequences = self.layout.sequences();
        assert!(next <= sequences, "a group ends at row {next} of {sequences}");
        if let Some(second) = self.second {
            assert_eq!(second.sequences(), sequences, "both layouts have the same sequences");
        }
    }

    /// The first block at which any group acts: blocks before it need no gradient. `num_blocks` when none does;
    /// 0 when something acts before the blocks.
    #[must_use]
    pub fn first_active_block(&self, num_blocks: usize) -> usize {
        let acts = |site: SiteId| self.groups.iter().any(|group| group.hooks.at(site).is_some());
        let mut reached_blocks = false;
        for site in self.sites.iter() {
            reached_blocks |= site.block.is_some();
            if acts(site.id) {
                return match site.block {
                    Some(block) => block as usize,
                    None if reached_blocks => num_blocks,
                    None => 0,
                };
            }
        }
        num_blocks
    }

    /// Whether any group acts at a site.
    #[must_use]
    pub fn is_active(&self, site: SiteId) -> bool {
        self.groups.iter().any(|group| group.hooks.at(site).is_some())
    }

    /// Runs a site: the base operation once for all rows whose hooks only add to it, then each group's hook on its own
    /// rows; groups whose hooks change the operation run it for themselves. A backbone calls this at every site.
    #[must_use]
    pub fn at(&self, site: SiteId, x: Vec<Tensor>, weights: Option<&OpWeights>, op: &Op<'_>) -> Vec<Tensor> {
        self.at_keys(site, x, self.layout, weights, op)
    }

    /// [`Forward::at`] where all inputs but the first lie as `keys` says: attention, whose keys may be another stack's.
    pub(crate) fn at_keys(
        &self,
        site: SiteId,
        x: Vec<Tensor>,
        keys: &Layout,
        weights: Option<&OpWeights>,
        op: &Op<'_>,
    ) -> Vec<Tensor> {
        self.run_site(site, x, keys, Base { weights, op, inside: None })
    }

    /// [`Forward::at`] for a site within which others lie: `part` is the operation with the hooks of a pass inside.
    pub(crate) fn at_part(&self, site: SiteId, x: &Tensor, part: &dyn Fn(&Forward<'_>, &Tensor) -> Tensor) -> Tensor {
        if !self.is_active(site) {
            return part(self, x);
        }
        let inside = |layout: &Layout, groups: &[Group<'_>], x: &Tensor| part(&Forward { layout, groups, ..*self }, x);
        // A hook may run this for its own rows alone: the hooks inside then see those.
        let op = |layout: &Layout, x: &[Tensor], _: Option<&OpWeights>| {
            vec![inside(layout, &self.groups_within(layout), &x[0])]
        };
        let base = Base { weights: None, op: &op, inside: Some(&inside) };
        one(self.run_site(site, vec![x.shallow_clone()], self.layout, base))
    }

    fn run_site(&self, site: SiteId, x: Vec<Tensor>, keys: &Layout, base: Base<'_>) -> Vec<Tensor> {
        let Base { weights, op, inside } = base;
        if !self.is_active(site) {
            return op(self.layout, &x, None);
        }
        let runs = self.runs(site);
        let own = runs.iter().any(|run| run.hook.is_some_and(|hook| !hook.shares_base()));
        let shared = if own { None } else { Some(op(self.layout, &x, None)) };
        if let (Some(y), [run]) = (&shared, runs.as_slice()) {
            let y = y.iter().map(Tensor::shallow_clone).collect();
            return finish(&self.cx(site, self.layout, keys), run.hook, &x, y);
        }
        let pieces: Vec<_> = runs
            .iter()
            .map(|run| {
                let layout = self.layout.rows(run.rows.clone());
                let other = (!std::ptr::eq(keys, self.layout)).then(|| keys.rows(run.rows.clone()));
                let cx = self.cx(site, &layout, other.as_ref().unwrap_or(&layout));
                let cut = |from: &Layout, t: &Tensor| from.narrow(t, run.rows.clone());
                let x: Vec<_> =
                    x.iter().enumerate().map(|(i, t)| cut(if i == 0 { self.layout } else { keys }, t)).collect();
                match (run.hook, &shared) {
                    (Some(hook), None) if !hook.shares_base() => {
                        let base = BaseOp { layout: &layout, weights, op, inside };
                        hook.around(&cx, x, &base)
                    }
                    (hook, Some(y)) => finish(&cx, hook, &x, y.iter().map(|t| cut(self.layout, t)).collect()),
                    (hook, None) => finish(&cx, hook, &x, op(&layout, &x, None)),
                }
            })
            .collect();
        join(pieces)
    }

    /// [`Forward::at`] for sites with one input and one output.
    ///
    /// # Panics
    /// When a hook gives another number of outputs: a defect of the method.
    pub fn at_one(&self, site: SiteId, x: Tensor, weights: Option<&OpWeights>, op: &Op<'_>) -> Tensor {
        one(self.at(site, vec![x], weights, op))
    }

    /// The groups that have rows within a part of this pass's batch, as groups of that part.
    pub(crate) fn groups_within(&self, part: &Layout) -> Vec<Group<'a>> {
        let (outer, inner) = (self.layout.range().start, part.range());
        let cut = |group: &Group<'a>| {
            let start = (group.rows.start + outer).max(inner.start);
            let end = (group.rows.end + outer).min(inner.end);
            (start < end).then(|| Group { rows: start - inner.start..end - inner.start, hooks: group.hooks })
        };
        self.groups.iter().filter_map(cut).collect()
    }

    /// Runs one group's hook on rows that are already its own.
    pub(crate) fn hooked(
        &self,
        site: SiteId,
        layout: &Layout,
        hook: &dyn SiteHook,
        x: Vec<Tensor>,
        op: &Op<'_>,
    ) -> Tensor {
        let base = BaseOp { layout, weights: None, op, inside: None };
        let cx = self.cx(site, layout, layout);
        one(if hook.shares_base() { hook.after(&cx, &x, op(layout, &x, None)) } else { hook.around(&cx, x, &base) })
    }

    fn cx<'s>(&'s self, site: SiteId, layout: &'s Layout, keys: &'s Layout) -> SiteCx<'s> {
        let Self { train, step, pass, peers, .. } = *self;
        SiteCx { site: &self.sites[site], layout, keys, train, step, pass, peers }
    }

    /// All rows in order, cut where hooks change; neighbours without a hook are one run.
    fn runs(&self, site: SiteId) -> Vec<Run<'a>> {
        let mut runs: Vec<Run<'a>> = Vec::new();
        let mut push = |rows: std::ops::Range<usize>, hook: Option<&'a dyn SiteHook>| {
            if rows.is_empty() {
                return;
            }
            match runs.last_mut() {
                Some(last) if last.hook.is_none() && hook.is_none() => last.rows.end = rows.end,
                _ => runs.push(Run { rows, hook }),
            }
        };
        let mut next = 0;
        for group in self.groups {
            push(next..group.rows.start, None);
            push(group.rows.clone(), group.hooks.at(site));
            next = group.rows.end;
        }
        push(next..self.layout.sequences(), None);
        runs
    }
}

pub(crate) fn one(list: Vec<Tensor>) -> Tensor {
    let mut list = list;
    assert_eq!(list.len(), 1, "a site of this role has one output");
    list.remove(0)
}

/// Lets the hook, if there is one, see the result.
fn finish(cx: &SiteCx<'_>, hook: Option<&dyn SiteHook>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
    match hook {
        Some(hook) => hook.after(cx, x, y),
        None => y,
    }
}

/// Puts the runs' outputs together again, output by output.
fn join(mut pieces: Vec<Vec<Tensor>>) -> Vec<Tensor> {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let outputs = pieces.first().map_or(0, Vec::len);
    (0..outputs)
        .map(|i| {
            let parts: Vec<_> = pieces.iter().map(|piece| &piece[i]).collect();
            Tensor::cat(&parts, 0)
        })
        .collect()
}
