//! One forward pass: who is in the batch, and how a site's base operation and the groups' hooks come together.

use std::ops::Range;

use tch::Tensor;

use super::Layout;
use super::hooks::{BaseOp, Group, Inside, Op, OpWeights, Peers, SiteCx, SiteHook};
use crate::site::{SiteId, Sites};

/// Elements that the processor works on at once, or a multiple of them.
const VECTOR: i64 = 64;

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
    /// Optimiser steps done, the key of per-step draws, by groups whose hooks name no other ([`super::HookSet::step`]).
    pub step: u64,
    /// Number of the pass within a step.
    pub pass: u32,
    /// The other ranks, in passes in which all go in step.
    pub peers: Option<&'a dyn Peers>,
}

/// Consecutive rows with the hook that acts on them, and the step of its training.
struct Run<'a> {
    rows: Range<usize>,
    hook: Option<&'a dyn SiteHook>,
    step: u64,
}

impl Run<'_> {
    /// Whether the hook runs the operation by itself.
    fn runs_base(&self) -> bool {
        self.hook.is_some_and(|hook| !hook.shares_base())
    }
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
        let cut = |t: &Tensor, from: &Layout| from.split(t, runs.iter().map(|run| &run.rows));
        let sides = |x: &[Tensor]| -> Vec<Vec<Tensor>> {
            x.iter().enumerate().map(|(i, t)| cut(t, if i == 0 { self.layout } else { keys })).collect()
        };
        // What the operation reads and what hooks read beside it are cut apart, in this order: gradients then come together
        // at `x` in one order, whoever shares the batch.
        let (mut base, mut shared) = (Vec::new(), Vec::new());
        if runs.iter().any(Run::runs_base) {
            base = sides(&x);
        } else {
            shared = op(self.layout, &x, None).iter().map(|y| cut(y, self.layout)).collect();
        }
        let beside = if runs.iter().any(|run| run.hook.is_some() && !run.runs_base()) { sides(&x) } else { Vec::new() };
        let piece = |pieces: &[Vec<Tensor>], i: usize| pieces.iter().map(|p| p[i].shallow_clone()).collect::<Vec<_>>();
        let pieces: Vec<_> = runs
            .iter()
            .enumerate()
            .map(|(i, run)| {
                // A run of all rows keeps the layout of the pass, with the positions and masks that it has made already.
                let alone = runs.len() == 1;
                let part = |whole: &Layout| (!alone).then(|| whole.rows(run.rows.clone()));
                let own = part(self.layout);
                let other = if std::ptr::eq(keys, self.layout) { None } else { part(keys) };
                let layout = own.as_ref().unwrap_or(self.layout);
                let keys = other.as_ref().unwrap_or(if alone { keys } else { layout });
                let cx = SiteCx { step: run.step, ..self.cx(site, layout, keys) };
                let y = |base: &[Vec<Tensor>]| match shared.is_empty() {
                    true => op(layout, &piece(base, i), None),
                    false => piece(&shared, i),
                };
                match run.hook {
                    Some(hook) if run.runs_base() => {
                        hook.around(&cx, piece(&base, i), &BaseOp { layout, weights, op, inside })
                    }
                    Some(hook) => hook.after(&cx, &piece(&beside, i), y(&base)),
                    None => y(&base),
                }
            })
            .collect();
        join(pieces)
    }

    /// An element-wise function of rows `[.., width]`. Its last elements are rounded otherwise than the rest where their
    /// number does not fill whole vectors: groups are then worked on one by one, so that none sees who shares the batch.
    pub(crate) fn each(&self, x: &Tensor, function: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let width = x.size().last().copied().unwrap_or_default();
        if self.groups.len() < 2 || width % VECTOR == 0 {
            return function(x);
        }
        let mut borders: Vec<_> = self.groups.iter().flat_map(|group| [group.rows.start, group.rows.end]).collect();
        borders.extend([0, self.layout.sequences()]);
        borders.sort_unstable();
        borders.dedup();
        let ranges: Vec<_> = borders.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let parts: Vec<_> = self.layout.split(x, ranges.iter()).iter().map(function).collect();
        Tensor::cat(&parts, 0)
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
        let mut push = |rows: Range<usize>, hook: Option<&'a dyn SiteHook>, step: u64| {
            if rows.is_empty() {
                return;
            }
            match runs.last_mut() {
                Some(last) if last.hook.is_none() && hook.is_none() => last.rows.end = rows.end,
                _ => runs.push(Run { rows, hook, step }),
            }
        };
        let mut next = 0;
        for group in self.groups {
            push(next..group.rows.start, None, self.step);
            push(group.rows.clone(), group.hooks.at(site), group.hooks.step().unwrap_or(self.step));
            next = group.rows.end;
        }
        push(next..self.layout.sequences(), None, self.step);
        runs
    }
}

pub(crate) fn one(list: Vec<Tensor>) -> Tensor {
    let mut list = list;
    assert_eq!(list.len(), 1, "a site of this role has one output");
    list.remove(0)
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
