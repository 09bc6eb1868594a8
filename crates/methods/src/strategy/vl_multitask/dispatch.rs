//! From rows to the hooks of their tasks.

use std::collections::BTreeMap;
use std::ops::Range;

use pleach_base::Result;
use pleach_nn::{BaseOp, Layout, OpWeights, Role, Site, SiteCx, SiteHook, SiteId};
use tch::Tensor;

use super::options::Config;
use crate::adapter::saved::Saved;
use crate::adapter::{AdapterConfig, Hooks, Parts, SiteMethod};

/// One hook a task at a site.
pub(super) struct ByTask(pub(super) Vec<Box<dyn SiteMethod>>);

impl ByTask {
    /// The hook of the task with this number.
    fn of(&self, task: u32) -> &dyn SiteMethod {
        self.0[(task as usize).min(self.0.len() - 1)].as_ref()
    }

    /// The task of all rows, where they have one: the first where they name none. Training refuses rows that name none.
    fn one(layout: &Layout) -> Option<u32> {
        let tasks = layout.tasks();
        let first = tasks.first().copied().unwrap_or_default();
        tasks.iter().all(|task| *task == first).then_some(first)
    }
}

/// Consecutive rows of one task.
fn runs(layout: &Layout) -> Vec<(u32, Range<usize>)> {
    let mut runs: Vec<(u32, Range<usize>)> = Vec::new();
    for (row, task) in layout.tasks().iter().enumerate() {
        match runs.last_mut() {
            Some((last, rows)) if last == task => rows.end = row + 1,
            _ => runs.push((*task, row..row + 1)),
        }
    }
    runs
}

/// Calls `each` with the rows of every run, and puts its results behind each other.
fn by_runs(
    cx: &SiteCx<'_>,
    x: &[Tensor],
    mut each: impl FnMut(u32, Range<usize>, &SiteCx<'_>, Vec<Tensor>) -> Vec<Tensor>,
) -> Vec<Tensor> {
    let mut pieces: Vec<Vec<Tensor>> = Vec::new();
    for (task, rows) in runs(cx.layout) {
        let layout = cx.layout.rows(rows.clone());
        let keys = (!std::ptr::eq(cx.keys, cx.layout)).then(|| cx.keys.rows(rows.clone()));
        let own = SiteCx { layout: &layout, keys: keys.as_ref().unwrap_or(&layout), ..*cx };
        let cut = |(index, x): (usize, &Tensor)| {
            let from = if index == 0 { cx.layout } else { cx.keys };
            from.narrow(x, rows.clone())
        };
        pieces.push(each(task, rows.clone(), &own, x.iter().enumerate().map(cut).collect()));
    }
    let outputs = pieces.first().map_or(0, Vec::len);
    let joined = |output: usize| Tensor::cat(&pieces.iter().map(|piece| &piece[output]).collect::<Vec<_>>(), 0);
    (0..outputs).map(joined).collect()
}

impl SiteHook for ByTask {
    fn shares_base(&self) -> bool {
        self.0.iter().all(|hook| hook.shares_base())
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        match Self::one(cx.layout) {
            Some(task) => self.of(task).after(cx, x, y),
            None => by_runs(cx, x, |task, rows, own, x| {
                let y = y.iter().map(|y| cx.layout.narrow(y, rows.clone())).collect();
                self.of(task).after(own, &x, y)
            }),
        }
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let run = |task: u32, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>| {
            let hook = self.of(task);
            if hook.shares_base() {
                let y = base.run(&x);
                hook.after(cx, &x, y)
            } else {
                hook.around(cx, x, base)
            }
        };
        match Self::one(cx.layout) {
            Some(task) => run(task, cx, x, base),
            None => by_runs(cx, &x, |task, _, own, x| run(task, own, x, &base.at(own.layout))),
        }
    }
}

impl SiteMethod for ByTask {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        match self.0.as_slice() {
            [one] => one.merged(site, base),
            _ => None,
        }
    }
}

/// The hooks of all tasks' adapters, side by side.
pub(super) fn hooks(config: &Config, inner: &dyn AdapterConfig, parts: &Parts<'_>) -> Result<Hooks> {
    let alone = parts.plan.children.first().is_none_or(|first| parts.plan.children.iter().all(|plan| plan == first));
    let mut all: BTreeMap<SiteId, Vec<Box<dyn SiteMethod>>> = BTreeMap::new();
    for (task, plan) in config.tasks.iter().zip(&parts.plan.children) {
        // Draws are the sample's own, whatever the task: equal keys keep `single` what it is without tasks.
        let key = if alone { parts.key } else { parts.key.named("task").named(&task.name) };
        for (site, hook) in inner.hooks(&parts.under(plan, key))? {
            all.entry(site).or_default().push(hook);
        }
        if alone {
            break;
        }
    }
    let one = |(site, mut hooks): (SiteId, Vec<Box<dyn SiteMethod>>)| match hooks.pop() {
        Some(only) if hooks.is_empty() => (site, only),
        last => {
            hooks.extend(last);
            (site, Box::new(ByTask(hooks)) as Box<dyn SiteMethod>)
        }
    };
    Ok(all.into_iter().map(one).collect())
}

/// The hooks of normalisations that are trained.
pub(super) fn norms(parts: &Parts<'_>, hooks: &mut Hooks) -> Result<()> {
    for id in &parts.plan.sites {
        let site = parts.site(*id);
        if site.role != Role::Norm || hooks.contains_key(id) {
            continue;
        }
        let weight = parts.part(*id, "weight")?.shallow_clone();
        let bias = site.bias.as_ref().map(|_| parts.part(*id, "bias")).transpose()?.map(Tensor::shallow_clone);
        hooks.insert(*id, Box::new(Saved(OpWeights { weight, bias })));
    }
    Ok(())
}
