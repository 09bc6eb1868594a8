//! What MOS does to tensors.

use pleach_base::Result;
use pleach_base::rng::Key;
use tch::{Kind, Tensor};

use super::{Config, MEANS, PROTOTYPES, SPREADS, stored};
use crate::continual::align::{Alignment, Head, Moments, root, sample};
use crate::continual::mos::{self, classes_of, cosine, mean_of, merged, retrieve};
use crate::continual::view::View;
use crate::continual::{Survey, only};

/// SGD's in the alignment.
const MOMENTUM: f64 = 0.9;

/// The pass of evaluation under the stored adapter of a task.
pub(super) fn pass(task: usize) -> u32 {
    task as u32 + 1
}

/// Draws the adapter in training to the mean of those of the tasks before this one.
pub(super) fn merge(config: &Config, view: &View<'_>, task: usize) -> Result<()> {
    let older: Vec<_> = (0..task).map(|task| view.copy(&stored(task))).collect::<Result<_>>()?;
    let _no_grad = tch::no_grad_guard();
    for (index, tensor) in view.module()?.into_iter().enumerate() {
        let olds: Vec<_> = older.iter().map(|old| old[index].shallow_clone()).collect();
        if let Some(mean) = mean_of(&olds) {
            tensor.shallow_clone().copy_(&merged(tensor, &mean, config.adapter_momentum));
        }
    }
    Ok(())
}

/// The classes of the tasks that are done.
fn known(view: &View<'_>) -> Vec<i64> {
    let mut known: Vec<i64> = view.splits[..view.done()].iter().flatten().map(|class| i64::from(*class)).collect();
    known.sort_unstable();
    known
}

fn rows(tensor: &Tensor, classes: &[i64]) -> Tensor {
    tensor.index_select(0, &Tensor::from_slice(classes).to_device(tensor.device()))
}

/// The contrast as a sum over rows.
pub(super) fn contrast(config: &Config, view: &View<'_>, features: &Tensor) -> Result<Tensor> {
    let known = known(view);
    let means = if known.is_empty() { None } else { Some(rows(view.parts.get(MEANS)?, &known)) };
    let mean = mos::contrast(means.as_ref(), features, config.reg_temperature);
    Ok(mean * (config.reg * features.size()[0] as f64))
}

/// Keeps what was found of a task's classes, then aligns the head. Gives the classes that have too few rows for a spread.
pub(super) fn surveyed(config: &Config, view: &View<'_>, task: usize, found: &Survey) -> Result<Vec<String>> {
    let _no_grad = tch::no_grad_guard();
    let [means, spreads, prototypes] = [MEANS, SPREADS, PROTOTYPES].map(|name| view.parts.get(name));
    let (means, spreads, prototypes) = (means?, spreads?, prototypes?);
    for class in &view.splits[task] {
        let row = i64::from(*class);
        if let Some(moments) = found.get(&(pass(task), *class)) {
            means.get(row).copy_(&moments.mean());
            spreads.get(row).copy_(&moments.spread(config.ca_storage_efficient_method));
        }
        if let Some(moments) = found.get(&(pass(0), *class)) {
            prototypes.get(row).copy_(&moments.mean());
        }
    }
    if task > 0 && config.crct_epochs > 0 {
        align(config, view, task)?;
    }
    Ok(view.splits[task].iter().filter_map(|class| few(*class, found.get(&(pass(task), *class))?)).collect())
}

/// What to say of a class with fewer rows than a covariance needs.
fn few(class: u32, moments: &Moments) -> Option<String> {
    let rows = if moments.count < 1.0 { "no row" } else { "one row" };
    (moments.count < 2.0).then(|| {
        format!(
            "class {class} has {rows}, and a covariance takes two: the head is aligned on samples of the least variance \
             about its mean; give it more rows"
        )
    })
}

/// Trains the head on samples of all classes so far.
fn align(config: &Config, view: &View<'_>, task: usize) -> Result<()> {
    let classes = known(view);
    let (means, spreads) = (rows(view.parts.get(MEANS)?, &classes), rows(view.parts.get(SPREADS)?, &classes));
    let roots: Vec<_> = (0..classes.len() as i64).map(|class| root(&spreads.get(class).to_kind(Kind::Double))).collect();
    let [weight, bias] = view.whole_head()?;
    let head = Head { weight: rows(&weight, &classes), bias: rows(&bias, &classes) };
    let key = view.parts.key.named("mos").with(task as u64);
    let count = config.ca_samples_per_class as usize;
    let draw = |epoch: u64| {
        let key = key.with(epoch);
        let of = |(index, class): (usize, &i64)| {
            let eps = normal(key.with(*class as u64), count, means.size()[1] as usize).to_device(means.device());
            sample(&means.get(index as i64).to_kind(Kind::Double), &roots[index], &eps).to_kind(Kind::Float)
        };
        let samples: Vec<_> = classes.iter().enumerate().map(of).collect();
        let order = shuffled(key.named("order"), count * classes.len());
        let labels: Vec<i64> = order.iter().map(|row| row / count as i64).collect();
        let order = Tensor::from_slice(&order).to_device(means.device());
        (Tensor::cat(&samples, 0).index_select(0, &order), Tensor::from_slice(&labels).to_device(means.device()))
    };
    let alignment = Alignment {
        epochs: u64::from(config.crct_epochs),
        lr: config.ca_lr,
        momentum: MOMENTUM,
        weight_decay: config.ca_weight_decay,
    };
    let _ = tch::with_grad(|| alignment.run(&head, classes.len() as i64, &mut { draw }));
    for (task, split) in view.splits[..view.done()].iter().enumerate() {
        let places: Vec<i64> =
            split.iter().filter_map(|class| classes.binary_search(&i64::from(*class)).ok()).map(|at| at as i64).collect();
        let [weight, bias] = view.head(task)?;
        weight.detach().copy_(&rows(&head.weight, &places));
        bias.detach().copy_(&rows(&head.bias, &places));
    }
    Ok(())
}

/// Standard normal numbers `[n, d]`, float64.
fn normal(key: Key, n: usize, d: usize) -> Tensor {
    let mut rng = key.rng();
    let values: Vec<f64> = (0..n * d).map(|_| f64::from(rng.normal())).collect();
    Tensor::from_slice(&values).reshape([n as i64, d as i64])
}

/// The numbers below `n` in a drawn order.
fn shuffled(key: Key, n: usize) -> Vec<i64> {
    let mut rng = key.rng();
    let mut order: Vec<i64> = (0..n as i64).collect();
    for last in (1..n).rev() {
        order.swap(last, rng.below(last as u64 + 1) as usize);
    }
    order
}

/// Scores of rows. Until the first task is done there is nothing to retrieve: the head's are those of the adapter in
/// training, as they are in the midst of a task.
pub(super) fn scores(config: &Config, view: &View<'_>, run: &dyn Fn(u32) -> Result<Tensor>) -> Result<Tensor> {
    let tasks = view.seen();
    if view.done() < tasks {
        return Ok(run(0)?.softmax(-1, None::<Kind>));
    }
    let features: Vec<_> = (0..tasks).map(|task| run(pass(task))).collect::<Result<_>>()?;
    let [weight, bias] = view.whole_head()?;
    let logits: Vec<_> =
        features.iter().map(|z| only(&z.linear(&weight, Some(&bias)), view.among(tasks))).collect();
    let near = only(&cosine(&features[0], view.parts.get(PROTOTYPES)?), view.among(tasks));
    let task_of = view.task_of();
    let first: Vec<_> = classes_of(&near.argmax(-1, false)).into_iter().map(|class| task_of[class as usize]).collect();
    let retrieved = retrieve(&logits, &first, &task_of, config.max_refine as usize);
    Ok(mos::scores(&retrieved.logits, &near, tasks, config.ensemble))
}
