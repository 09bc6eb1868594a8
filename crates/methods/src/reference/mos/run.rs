//! The sequence: train, store, statistics, alignment, prototypes, retrieval.

use pleach_base::Result;
use tch::{Kind, Tensor};

use super::around::{Adapter, InPass, NAMES};
use super::{Config, Schedule};
use crate::continual::align::{Head, Moments, cosine_factor, root, sample};
use crate::continual::mos::{classes_of, contrast, cosine, retrieve, scores};
use crate::continual::{MergeSchedule, only};
use crate::reference::recording::{Recording, wrong};
use crate::reference::timm::{Vit, double, double_leaf};
use crate::reference::training::Leaves;
use crate::reference::{Compared, Train};

struct Run<'a> {
    recording: &'a Recording,
    config: &'a Config,
    sizes: Vec<i64>,
    vit: Vit,
    current: Adapter,
    /// Of the tasks that are done; those that the next ones are drawn to, which evaluation never changes.
    stored: Vec<Adapter>,
    history: Vec<Adapter>,
    merged: bool,
    head: [Tensor; 2],
    means: Vec<Tensor>,
    roots: Vec<Tensor>,
    prototypes: Vec<Tensor>,
}

pub(super) fn repeat(recording: &Recording, config: &Config, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let vit = Vit::read(recording)?;
    let read = |block: usize, name: &str| double_leaf(recording, &format!("param.cur_adapter.{block}.{name}"));
    let current = Adapter::read(vit.depth(), &read)?;
    let inner = current.0.first().map_or(0, |block| block[0].size()[0]);
    if inner != config.ffn_num {
        return Err(wrong(format!("config.ffn_num: {} but the adapters have {inner}", config.ffn_num)));
    }
    let head = [double_leaf(recording, "param.head.weight")?, double_leaf(recording, "param.head.bias")?];
    let sizes = config.sizes(head[0].size()[0])?;
    let (stored, history, means, roots, prototypes) = Default::default();
    let merged = false;
    let mut run =
        Run { recording, config, sizes, vit, current, stored, history, merged, head, means, roots, prototypes };
    for task in 0..run.sizes.len() {
        run.train(task, train, compared)?;
        run.stored.push(run.current.copy());
        run.history.push(run.current.copy());
        run.statistics(task, compared)?;
        if task > 0 {
            run.align(task, compared)?;
        }
        run.prototypes(task, compared)?;
        run.evaluate(task, compared)?;
    }
    Ok(())
}

impl Run<'_> {
    fn input(&self, task: usize, what: &str) -> Result<Tensor> {
        double(self.recording, &format!("input.task{task}.{what}"))
    }

    fn seen(&self, task: usize) -> i64 {
        self.sizes[..=task].iter().sum()
    }

    fn merges(&self, when: MergeSchedule) -> bool {
        self.config.merge_schedule == when
    }

    /// Features under an adapter, which belongs to the task of this number.
    fn features(&self, images: &Tensor, adapter: &Adapter, task: usize, keep: Option<Tensor>) -> Tensor {
        let Config { adapter_momentum, adapter_scalar, .. } = *self.config;
        let adapter = match self.merges(MergeSchedule::Reference) && task > 0 && adapter_momentum > 0.0 {
            true => adapter.merging_pass(&self.history[..task], adapter_momentum),
            false => adapter.alias(),
        };
        self.vit.features(images, &InPass { adapter, scale: adapter_scalar, keep })
    }

    fn logits(&self, features: &Tensor, task: usize) -> Tensor {
        features.linear(&self.head[0], Some(&self.head[1])).narrow(1, 0, self.seen(task))
    }

    fn train(&mut self, task: usize, train: &dyn Train, compared: &mut Compared) -> Result<()> {
        let (config, spec) = (self.config, self.config.optimizer());
        let x = self.input(task, "x")?;
        let y = self.recording.get(&format!("input.task{task}.y"))?;
        let masks = self.recording.find(&format!("input.task{task}.dropout_mask"));
        let adapter: Vec<_> = self.current.tensors().map(Tensor::shallow_clone).collect();
        let head = self.head.iter().map(Tensor::shallow_clone).collect();
        let (mut adapter, mut head) = (Leaves::new(adapter, &spec, train), Leaves::new(head, &spec, train));
        let open = self.seen(task) - self.sizes[task]..self.seen(task);
        let (mut ces, mut contrasts) = (Vec::new(), Vec::new());
        for epoch in 0..config.tuned_epoch {
            let lr = match config.schedule {
                Schedule::Cosine => config.init_lr * cosine_factor(epoch, config.tuned_epoch),
                Schedule::Constant => config.init_lr,
            };
            for batch in 0..x.size()[0] {
                let keep = masks.as_ref().map(|masks| masks.get(ces.len() as i64).to_kind(Kind::Double));
                let features = self.features(&x.get(batch), &self.current, task, keep);
                let logits = only(&self.logits(&features, task), |class| open.contains(&class));
                let ce = logits.cross_entropy_loss(&y.get(batch), None::<&Tensor>, tch::Reduction::Mean, -100, 0.0);
                let known = (!self.means.is_empty()).then(|| Tensor::stack(&self.means, 0));
                let apart = contrast(known.as_ref(), &features, config.reg_temperature) * config.reg;
                (&ce + &apart).backward();
                ces.push(ce.double_value(&[]));
                contrasts.push(apart.double_value(&[]));
                adapter.update(lr);
                head.update(lr * config.head_lr_factor);
                if !self.merges(MergeSchedule::PerEpoch) {
                    self.merge(task);
                }
            }
            if self.merges(MergeSchedule::PerEpoch) {
                self.merge(task);
            }
        }
        compared.tensor(&format!("task{task}.ce"), &Tensor::from_slice(&ces))?;
        compared.tensor(&format!("task{task}.contrast"), &Tensor::from_slice(&contrasts))?;
        for (block, tensors) in self.current.0.iter().enumerate() {
            for (name, tensor) in NAMES.iter().zip(tensors) {
                compared.if_recorded(&format!("task{task}.adapter.{block}.{name}"), || Ok(tensor.detach()))?;
            }
        }
        self.compare_head(&format!("task{task}.head"), compared)
    }

    /// Draws the adapter to the mean of those before it. In the paper's code the first of those lies in the memory of the
    /// adapter in training until that is first merged: outside of the released schedule, which merges before the first
    /// step, the first adapter of the history is therefore the one that is merged first.
    fn merge(&mut self, task: usize) {
        if task == 1 && !self.merged && !self.merges(MergeSchedule::Reference) {
            self.history[0] = self.current.copy();
        }
        self.merged |= task > 0;
        self.current.merge(&self.history, self.config.adapter_momentum);
    }

    fn compare_head(&self, name: &str, compared: &mut Compared) -> Result<()> {
        compared.if_recorded(&format!("{name}.weight"), || Ok(self.head[0].detach()))?;
        compared.if_recorded(&format!("{name}.bias"), || Ok(self.head[1].detach()))
    }

    /// Mean and spread of every new class under the task's adapter, in batches of three training batches.
    fn statistics(&mut self, task: usize, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let images = self.input(task, "class_x")?;
        let most = 3 * self.input(task, "x")?.size()[1];
        let first = self.seen(task) - self.sizes[task];
        for index in 0..self.sizes[task] {
            let batches = images.get(index).split(most, 0);
            let features: Vec<_> =
                batches.iter().map(|batch| self.features(batch, &self.current, task, None)).collect();
            let moments = Moments::of(&Tensor::cat(&features, 0));
            let (mean, spread) = (moments.mean(), moments.spread(self.config.ca_storage_efficient_method));
            let name = format!("class{}", first + index);
            compared.if_recorded(&format!("{name}.mean"), || Ok(mean.shallow_clone()))?;
            compared.if_recorded(&format!("{name}.cov"), || Ok(spread.shallow_clone()))?;
            self.means.push(mean);
            self.roots.push(root(&spread));
        }
        Ok(())
    }

    fn align(&self, task: usize, compared: &mut Compared) -> Result<()> {
        let eps = self.input(task, "ca_eps")?;
        if eps.size()[2] != self.config.ca_samples_per_class {
            return Err(wrong("config.ca_samples_per_class: not as many were drawn"));
        }
        let order = self.recording.get(&format!("input.task{task}.ca_perm"))?;
        let classes = self.seen(task);
        let head = Head { weight: self.head[0].shallow_clone(), bias: self.head[1].shallow_clone() };
        let losses = self.config.alignment().run(&head, classes, &mut |epoch| {
            let eps = eps.get(epoch as i64);
            let of = |class: i64| sample(&self.means[class as usize], &self.roots[class as usize], &eps.get(class));
            let samples = Tensor::cat(&(0..classes).map(of).collect::<Vec<_>>(), 0);
            let labels = Tensor::arange(classes, (Kind::Int64, samples.device()));
            let labels = labels.repeat_interleave_self_int(eps.size()[1], 0, None);
            let order = order.get(epoch as i64);
            (samples.index_select(0, &order), labels.index_select(0, &order))
        });
        compared.if_recorded(&format!("task{task}.ca_loss"), || Ok(losses))?;
        self.compare_head(&format!("task{task}.head_aligned"), compared)
    }

    fn prototypes(&mut self, task: usize, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let images = self.input(task, "class_x")?;
        for index in 0..self.sizes[task] {
            let features = self.features(&images.get(index), &self.stored[0], 0, None);
            self.prototypes.push(Moments::of(&features).mean());
        }
        let all = Tensor::stack(&self.prototypes, 0);
        compared.if_recorded(&format!("task{task}.prototypes"), || Ok(all))
    }

    fn evaluate(&self, task: usize, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let images = double(self.recording, "input.eval.x")?;
        let features = |index: usize| self.features(&images, &self.stored[index], index, None);
        let cosine = cosine(&features(0), &Tensor::stack(&self.prototypes, 0));
        let logits: Vec<_> = (0..=task).map(|index| self.logits(&features(index), task)).collect();
        let sizes = self.sizes[..=task].iter().enumerate();
        let task_of: Vec<usize> = sizes.flat_map(|(task, size)| (0..*size).map(move |_| task)).collect();
        let first = classes_of(&cosine.argmax(-1, false)).into_iter().map(|class| task_of[class as usize]);
        let most = self.config.max_refine;
        let retrieved = retrieve(&logits, &first.collect::<Vec<_>>(), &task_of, most);
        let scores = scores(&retrieved.logits, &cosine, task + 1, self.config.ensemble);
        compared.if_recorded(&format!("task{task}.scores"), || Ok(scores.shallow_clone()))?;
        compared.if_recorded(&format!("task{task}.visited"), || {
            let rows = retrieved.visited.iter();
            let padded = rows.flat_map(|row| (0..most).map(|at| row.get(at).map_or(-1, |task| *task as i64)));
            Ok(Tensor::from_slice(&padded.collect::<Vec<_>>()).reshape([-1, most as i64]))
        })?;
        compared.tensor(&format!("task{task}.prediction"), &scores.argmax(-1, false))
    }
}
