//! The tensors of an adapter that learns a sequence, as a recipe sees them, and its hooks.

use std::collections::BTreeMap;

use pleach_base::{Result, code};
use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::only;
use super::sequence::{ACCURACY, AT, Continual, Recipe, head_name, module};
use crate::adapter::{Hooks, Parts, SiteMethod};
use crate::plan::Plan;

/// The state and the tensors.
pub(crate) struct View<'a> {
    pub(crate) parts: Parts<'a>,
    /// The module's plan.
    pub(crate) own: &'a Plan,
    /// The classes of every task.
    pub(crate) splits: Vec<Vec<u32>>,
    /// Classes of the model.
    pub(crate) classes: usize,
    /// Task in training, tasks that have begun, tasks that are done.
    at: Tensor,
}

impl<'a> View<'a> {
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    pub(crate) fn of<R: Recipe>(recipe: &R, parts: &Parts<'a>) -> Result<Self> {
        let missing = || code::INTERNAL.error("the plan of a sequence of tasks has no module or no state");
        let own = parts.plan.children.first().ok_or_else(missing)?;
        let head = parts.plan.named(AT).ok_or_else(missing)?.site;
        let classes = parts.site(head).dims.output;
        let splits = recipe.splits(u32::try_from(classes).unwrap_or(u32::MAX))?;
        Ok(Self { parts: *parts, own, splits, classes, at: parts.get(AT)?.shallow_clone() })
    }

    fn number(&self, index: i64) -> usize {
        self.at.double_value(&[index]) as usize
    }

    fn set(&self, index: i64, value: usize) {
        let _ = tch::no_grad(|| self.at.get(index).fill_(value as f64));
    }

    /// Tasks that have begun: at least the first.
    pub(crate) fn seen(&self) -> usize {
        self.number(1).max(1)
    }

    /// Tasks that are done.
    pub(crate) fn done(&self) -> usize {
        self.number(2)
    }

    /// Notes that a task has begun.
    pub(crate) fn begin(&self, task: usize) {
        self.set(0, task);
        self.set(1, task + 1);
    }

    /// Notes that a task is done.
    pub(crate) fn end(&self, task: usize) {
        self.set(2, task + 1);
    }

    /// Notes what a task has come to, and goes on to the next.
    pub(crate) fn advance(&self, task: usize, accuracies: &[f64]) -> Result<()> {
        let matrix = self.parts.get(ACCURACY)?;
        let _no_grad = tch::no_grad_guard();
        for (index, accuracy) in accuracies.iter().enumerate() {
            let known = if accuracy.is_nan() { -1.0 } else { *accuracy };
            let _ = matrix.get(task as i64).get(index as i64).fill_(known);
        }
        if task + 1 < self.splits.len() {
            self.set(0, task + 1);
        }
        Ok(())
    }

    /// Rows of the tasks that are done, as far as all of a row was measured.
    pub(crate) fn accuracies(&self) -> Result<Vec<Vec<f64>>> {
        let matrix = self.parts.get(ACCURACY)?;
        let row = |task: usize| (0..=task).map(|other| matrix.double_value(&[task as i64, other as i64])).collect();
        let rows = (0..self.done().min(self.splits.len())).map(row);
        Ok(rows.filter(|row: &Vec<f64>| row.iter().all(|accuracy| *accuracy >= 0.0)).collect())
    }

    /// The module's trained tensors.
    pub(crate) fn module(&self) -> Result<Vec<&'a Tensor>> {
        module(self.own).map(|tensor| self.parts.get(&tensor.name)).collect()
    }

    /// The same of a copy.
    pub(crate) fn copy(&self, name: &str) -> Result<Vec<&'a Tensor>> {
        module(self.own).map(|tensor| self.parts.get(&format!("{name}.{}", tensor.name))).collect()
    }

    /// Makes a copy equal to the module.
    pub(crate) fn store(&self, name: &str) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (copy, own) in self.copy(name)?.into_iter().zip(self.module()?) {
            copy.shallow_clone().copy_(&own.detach());
        }
        Ok(())
    }

    /// The head's rows of a task: weight and bias.
    pub(crate) fn head(&self, task: usize) -> Result<[Tensor; 2]> {
        let part = |part| self.parts.get(&head_name(task, part)).map(Tensor::shallow_clone);
        Ok([part("weight")?, part("bias")?])
    }

    /// The head of all classes in their order; classes of no task have the rows of some other.
    pub(crate) fn whole_head(&self) -> Result<[Tensor; 2]> {
        let heads: Vec<_> = (0..self.splits.len()).map(|task| self.head(task)).collect::<Result<_>>()?;
        Ok(assembled(&heads, &self.splits, self.classes))
    }

    /// Whether a class is of one of the first `tasks` tasks.
    pub(crate) fn among(&self, tasks: usize) -> impl Fn(i64) -> bool + '_ {
        move |class| self.splits[..tasks.min(self.splits.len())].iter().flatten().any(|open| i64::from(*open) == class)
    }

    /// The task of every class; 0 for those of none.
    pub(crate) fn task_of(&self) -> Vec<usize> {
        let of = |class: usize| self.splits.iter().position(|split| split.contains(&(class as u32))).unwrap_or(0);
        (0..self.classes).map(of).collect()
    }
}

/// Rows of all tasks' heads in the order of classes.
fn assembled(heads: &[[Tensor; 2]], splits: &[Vec<u32>], classes: usize) -> [Tensor; 2] {
    let order: Vec<u32> = splits.iter().flatten().copied().collect();
    let place = |class: usize| order.iter().position(|other| *other as usize == class).unwrap_or(0) as i64;
    let places: Vec<i64> = (0..classes).map(place).collect();
    [0, 1].map(|part: usize| {
        let rows: Vec<_> = heads.iter().map(|head| &head[part]).collect();
        let all = Tensor::cat(&rows, 0);
        all.index_select(0, &Tensor::from_slice(&places).to_device(all.device()))
    })
}

/// The sum over rows of the loss of what the model gave in training.
pub(super) fn loss<R: Recipe>(recipe: &R, parts: &Parts<'_>, output: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let view = View::of(recipe, parts)?;
    let (all, wide) = (view.classes as i64, output.size()[1]);
    let logits = output.narrow(1, 0, all).to_kind(Kind::Float);
    let sum = logits.cross_entropy_loss(classes, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0);
    let more = match wide > all {
        true => recipe.more_loss(&view, &output.narrow(1, all, wide - all))?,
        false => None,
    };
    Ok(more.map_or_else(|| sum.shallow_clone(), |more| &sum + more))
}

/// Hooks of the module and its copies, and of the head.
pub(super) fn hooks<R: Recipe>(config: &Continual<R>, parts: &Parts<'_>) -> Result<Hooks> {
    let view = View::of(&config.recipe, parts)?;
    let mut turns: BTreeMap<SiteId, Vec<Box<dyn SiteMethod>>> = BTreeMap::new();
    for plan in &parts.plan.children {
        for (site, hook) in config.inner.hooks(&parts.under(plan, parts.key))? {
            turns.entry(site).or_default().push(hook);
        }
    }
    let mut hooks: Hooks =
        turns.into_iter().map(|(site, turns)| (site, Box::new(Turns(turns)) as Box<dyn SiteMethod>)).collect();
    let head = parts.plan.named(AT).map(|tensor| tensor.site);
    let heads = (0..view.splits.len()).map(|task| view.head(task)).collect::<Result<_>>()?;
    if let Some(head) = head {
        let (recipe, splits, classes) = (config.recipe.clone(), view.splits, view.classes);
        hooks.insert(head, Box::new(Rows { recipe, heads, splits, classes, at: view.at }));
    }
    Ok(hooks)
}

/// The module and its copies at a site: the number of an evaluating pass says which of them runs.
struct Turns(Vec<Box<dyn SiteMethod>>);

impl Turns {
    fn now(&self, cx: &SiteCx<'_>) -> &dyn SiteMethod {
        let pass = if cx.train { 0 } else { cx.pass as usize };
        self.0[pass.min(self.0.len() - 1)].as_ref()
    }
}

impl SiteHook for Turns {
    fn shares_base(&self) -> bool {
        self.0[0].shares_base()
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.now(cx).after(cx, x, y)
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        self.now(cx).around(cx, x, base)
    }
}

impl SiteMethod for Turns {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

/// The head.
struct Rows<R> {
    recipe: R,
    heads: Vec<[Tensor; 2]>,
    splits: Vec<Vec<u32>>,
    classes: usize,
    at: Tensor,
}

impl<R: Recipe> Rows<R> {
    fn open(&self, train: bool) -> &[Vec<u32>] {
        let at = |index| self.at.double_value(&[index]) as usize;
        let last = self.splits.len();
        if train && self.recipe.local_loss() {
            let task = at(0).min(last - 1);
            return &self.splits[task..=task];
        }
        let seen = if train { at(0) + 1 } else { at(1).max(1) };
        &self.splits[..seen.min(last)]
    }
}

impl<R: Recipe> SiteHook for Rows<R> {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, _: &BaseOp<'_>) -> Vec<Tensor> {
        let features = x[0].to_kind(Kind::Float);
        let shows = self.recipe.shows_features(cx.train, cx.pass);
        if shows && !cx.train {
            return vec![features];
        }
        let [weight, bias] = assembled(&self.heads, &self.splits, self.classes);
        let open = self.open(cx.train);
        let logits = only(&features.linear(&weight, Some(&bias)), |class| {
            open.iter().flatten().any(|open| i64::from(*open) == class)
        });
        vec![if shows { Tensor::cat(&[logits, features], -1) } else { logits }]
    }
}

impl<R: Recipe> SiteMethod for Rows<R> {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}
