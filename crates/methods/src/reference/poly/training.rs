//! Trainings of page 59: skills at one rate and logits at another, then a new task with an optimiser of its own.

use pleach_base::Result;
use pleach_spec::job::{OptimizerName, OptimizerSpec};
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Reduction, Tensor};

use super::super::Compared;
use super::super::recording::wrong;
use super::super::training::{Train, Update, gradient};
use super::net::Net;
use super::{Case, Route, Variant, numbers, wide};
use crate::adapter::poly::Mode;

/// `config.optimizer`: two groups.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Groups {
    name: String,
    #[serde(default)]
    weight_decay_adapters: f64,
    /// A number, or words for the optimiser's own default.
    #[serde(default)]
    weight_decay_logits: Value,
    #[serde(default = "betas")]
    betas: [f64; 2],
    #[serde(default = "eps")]
    eps: f64,
    #[serde(default)]
    momentum: f64,
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn eps() -> f64 {
    1e-8
}

impl Groups {
    /// The optimisers of skills and of logits.
    fn specs(&self, case: &Case<'_>) -> Result<[OptimizerSpec; 2]> {
        let (name, default) = match self.name.to_ascii_lowercase().as_str() {
            "adamw" => (OptimizerName::AdamW, 0.01),
            // Without decay the two are one.
            "adam" => (OptimizerName::AdamW, 0.0),
            "sgd" => (OptimizerName::Sgd, 0.0),
            other => return Err(wrong(format!("config.optimizer.name: {other} is not one of this build"))),
        };
        let logits = self.weight_decay_logits.as_f64().unwrap_or(default);
        if self.name.eq_ignore_ascii_case("adam") && (self.weight_decay_adapters, logits) != (0.0, 0.0) {
            return Err(wrong("config.optimizer: Adam's own weight decay is not one of this build"));
        }
        let of = |lr, weight_decay| OptimizerSpec {
            name,
            lr,
            betas: self.betas,
            eps: self.eps,
            weight_decay,
            momentum: self.momentum,
        };
        let config = &case.config;
        Ok([
            of(config.adapters_learning_rate, self.weight_decay_adapters),
            of(config.module_logits_learning_rate, logits),
        ])
    }
}

/// Leaves that one optimiser updates.
struct Group {
    leaves: Vec<Tensor>,
    update: Box<dyn Update>,
    lr: f64,
}

impl Group {
    fn new(leaves: &[(String, Tensor)], spec: &OptimizerSpec, train: &dyn Train) -> Self {
        let leaves: Vec<_> = leaves.iter().map(|(_, leaf)| leaf.shallow_clone()).collect();
        let n = leaves.iter().map(|leaf| leaf.numel() as i64).sum();
        Self { leaves, update: train.optimizer(spec, n), lr: spec.lr }
    }

    fn grads(&self) -> Tensor {
        Tensor::cat(&self.leaves.iter().map(|leaf| gradient(leaf).flatten(0, -1)).collect::<Vec<_>>(), 0)
    }

    fn apply(&mut self, grads: &Tensor) {
        let flat: Vec<_> = self.leaves.iter().map(|leaf| leaf.flatten(0, -1)).collect();
        let mut params = Tensor::cat(&flat, 0);
        self.update.step(&mut params, grads, self.lr);
        let mut at = 0;
        for leaf in &self.leaves {
            let n = leaf.numel() as i64;
            leaf.shallow_clone().copy_(&params.narrow(0, at, n).reshape(leaf.size()));
            at += n;
        }
    }
}

/// One update of all groups, clipped together.
fn update(groups: &mut [Group], all: &[(String, Tensor)], clip: f64) {
    let _no_grad = tch::no_grad_guard();
    let grads: Vec<_> = groups.iter().map(Group::grads).collect();
    let norm = Tensor::cat(&grads, 0).norm().double_value(&[]);
    let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    for (group, grads) in groups.iter_mut().zip(grads) {
        group.apply(&(grads * factor));
    }
    for (_, leaf) in all {
        let mut grad = leaf.grad();
        if grad.defined() {
            let _ = grad.zero_();
        }
    }
}

/// What a part of the training is called and how it routes.
struct Part<'a> {
    name: &'a str,
    route: Route,
}

/// Trains a part and compares its losses.
fn part(net: &Net<'_>, part: &Part<'_>, groups: &mut [Group], compared: &mut Compared) -> Result<()> {
    let (case, name) = (net.case(), part.name);
    let input = |what: &str| case.recording.get(&format!("input.{name}.{what}"));
    let (x, target) = (wide(&input("x")?), wide(&input("target")?));
    let tasks = case.recording.find(&format!("input.{name}.task_ids"));
    let (steps, rows) = (x.size()[0], x.size()[1]);
    let leaves = net.leaves();
    let mut losses = Vec::new();
    for step in 0..steps {
        let tasks: Vec<i64> = match &tasks {
            Some(tasks) => numbers(&tasks.get(step))?,
            None => vec![0; rows as usize],
        };
        let uniforms = |map: &str| Ok(wide(&input(&format!("uniform.{map}"))?.get(step)));
        let output = net.run(&x.get(step), &mut |map, skills, x| {
            Ok(skills.added(x, &case.weights(net, map, &tasks, part.route, &uniforms)?))
        })?;
        let loss = output.mse_loss(&target.get(step), Reduction::Mean);
        losses.push(loss.detach().to_kind(Kind::Double));
        loss.backward();
        update(groups, &leaves, case.around.clip_grad_norm);
    }
    compared.tensor(&format!("{name}.loss"), &Tensor::stack(&losses, 0))?;
    for (leaf, tensor) in net.leaves() {
        compared.if_recorded(&format!("{name}.{leaf}"), || Ok(tensor.detach()))?;
    }
    Ok(())
}

/// Both parts.
pub(super) fn run(case: &Case<'_>, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    if let Some(other) = case.around.loss.as_ref().filter(|loss| !loss.starts_with("mean squared error")) {
        return Err(wrong(format!("config.loss: page 59 has no {other}")));
    }
    let fields = case.recording.config.get("optimizer").cloned().ok_or_else(|| wrong("config.optimizer is missing"))?;
    let groups: Groups =
        serde_json::from_value(fields).map_err(|error| wrong("config.optimizer: cannot be used").caused_by(error))?;
    let [skills, logits] = groups.specs(case)?;
    let route = Route { relaxed: case.config.module_logits_relaxed_bernoulli, ..case.route(Variant::default()) };
    let mut net = Net::new(case)?;
    let mut both = [Group::new(&net.skills(), &skills, train), Group::new(net.selectors(), &logits, train)];
    part(&net, &Part { name: "pretrain", route }, &mut both, compared)?;
    if case.recording.find("input.fewshot.x").is_none() {
        return Ok(());
    }
    let mode = case.around.mode.unwrap_or(Mode::Full);
    for index in 0..net.selectors().len() {
        let name = format!("input.fewshot.selector.{index}.module_logits");
        match case.recording.find(&name) {
            Some(row) => net.set_selector(index, wide(&row).copy().set_requires_grad(true)),
            None if mode == Mode::Mu => {}
            None => return Err(super::super::recording::bad(format!("{name} is missing"))),
        }
    }
    let own = |what: Mode| match what {
        Mode::Z => Group::new(net.selectors(), &logits, train),
        Mode::Full | Mode::Mu => Group::new(&net.skills(), &skills, train),
    };
    let mut groups = match mode {
        Mode::Full => vec![own(Mode::Full), own(Mode::Z)],
        one => vec![own(one)],
    };
    let route = Route { average: mode == Mode::Mu, ..route };
    part(&net, &Part { name: "fewshot", route }, &mut groups, compared)
}
