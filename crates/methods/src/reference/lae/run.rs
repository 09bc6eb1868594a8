//! A sequence of tasks: the online module and its classifiers learn, copies follow, and all vote.

use pleach_base::Result;
use pleach_spec::job::{OptimizerName, OptimizerSpec};
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::pets::{Pet, Spec};
use crate::adapter::lae_pet::{Kind as PetKind, Kwargs};
use crate::continual::lae::{accumulate_chain, scores};
use crate::continual::{Ensemble, only};
use crate::reference::recording::{Recording, wrong};
use crate::reference::timm::{Around, Extra, Vit, double, double_leaf};
use crate::reference::training::Leaves;
use crate::reference::{Compared, Train};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    pet_cls: PetKind,
    #[serde(default)]
    pet_kwargs: Kwargs,
    adapt_blocks: Vec<usize>,
    #[serde(default = "one")]
    num_emas: usize,
    ema_decay: f64,
    #[serde(default)]
    num_freeze_epochs: i64,
    num_epochs: i64,
    #[serde(default)]
    eval_only_emas: bool,
    #[serde(default)]
    ensemble: Ensemble,
    #[serde(default = "yes")]
    local_loss: bool,
    tasks: Vec<i64>,
    optimizer: Optimizer,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

/// The optimiser, which decays by the gradient if its name is plain Adam.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Optimizer {
    name: String,
    lr: f64,
    #[serde(default = "betas")]
    betas: [f64; 2],
    #[serde(default = "eps")]
    eps: f64,
    #[serde(default)]
    weight_decay: f64,
    #[serde(default)]
    momentum: f64,
}

fn betas() -> [f64; 2] {
    OptimizerSpec::default().betas
}

fn eps() -> f64 {
    OptimizerSpec::default().eps
}

impl Optimizer {
    fn spec(&self) -> Result<OptimizerSpec> {
        let Self { lr, betas, eps, weight_decay, momentum, .. } = *self;
        let name = match self.name.to_ascii_lowercase().as_str() {
            "adamw" => OptimizerName::AdamW,
            "adam" if weight_decay == 0.0 => OptimizerName::AdamW,
            "sgd" => OptimizerName::Sgd,
            other => {
                return Err(wrong(format!("config.optimizer: {other} with weight decay {weight_decay} is not built")));
            }
        };
        Ok(OptimizerSpec { name, lr, betas, eps, weight_decay, momentum })
    }
}

/// The modules of all adapted blocks.
struct Pets<'a> {
    blocks: &'a [usize],
    pets: Vec<Pet>,
}

impl Pets<'_> {
    fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.pets.iter().flat_map(|pet| pet.leaves.iter().map(|(_, leaf)| leaf))
    }

    fn of(&self, block: usize) -> Option<&Pet> {
        self.blocks.iter().position(|at| *at == block).map(|index| &self.pets[index])
    }
}

impl Around for Pets<'_> {
    fn attention(&self, block: usize, u: &Tensor, attend: &dyn Fn(&Tensor, &Extra<'_>) -> Tensor) -> Tensor {
        self.of(block).map_or_else(|| attend(u, &Extra::default()), |pet| pet.attention(u, attend))
    }

    fn mlp(&self, block: usize, _: &Tensor, u: &Tensor, mlp: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        self.of(block).map_or_else(|| mlp(u), |pet| pet.mlp(u, mlp))
    }
}

struct Run<'a> {
    recording: &'a Recording,
    config: &'a Config,
    vit: Vit,
    online: Pets<'a>,
    /// Oldest first.
    offline: Vec<Pets<'a>>,
    /// Weight and bias of each task.
    classifiers: Vec<[Tensor; 2]>,
}

pub(super) fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let config: Config = serde_json::from_value(Value::Object(recording.config.clone()))
        .map_err(|error| wrong("config: cannot be used").caused_by(error))?;
    let spec = config.optimizer.spec()?;
    let pets = |get: &dyn Fn(&str) -> Result<Tensor>| pets(&config, get);
    let online = pets(&|name| double_leaf(recording, &format!("param.pets.{name}")))?;
    let vit = Vit::read(recording)?;
    if let Some(block) = config.adapt_blocks.iter().find(|block| **block >= vit.depth()) {
        return Err(wrong(format!("config.adapt_blocks: there is no block {block}")));
    }
    let mut run = Run { recording, config: &config, vit, online, offline: Vec::new(), classifiers: Vec::new() };
    for task in 0..config.tasks.len() {
        run.begin(task)?;
        let losses = run.train(task, &spec, train)?;
        compared.tensor(&format!("task{task}.loss"), &Tensor::from_slice(&losses))?;
        run.compare(task, compared)?;
    }
    Ok(())
}

fn pets<'a>(config: &'a Config, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<Pets<'a>> {
    let spec = Spec::new(config.pet_cls, config.pet_kwargs.clone());
    let read = |index: usize| Pet::read(&spec, &|part| get(&format!("{index}.{part}")));
    Ok(Pets { blocks: &config.adapt_blocks, pets: (0..config.adapt_blocks.len()).map(read).collect::<Result<_>>()? })
}

impl Run<'_> {
    /// A fresh classifier, and from the second task on one more copy until there are enough.
    fn begin(&mut self, task: usize) -> Result<()> {
        if task > 0 && self.offline.len() < self.config.num_emas {
            let online = &self.online;
            let copy = |name: &str| -> Result<Tensor> {
                let (index, part) = name.split_once('.').unwrap_or_default();
                let pet = index.parse().ok().and_then(|index: usize| online.pets.get(index));
                let leaf = pet.and_then(|pet| pet.leaves.iter().find(|(name, _)| name == part));
                leaf.map(|(_, leaf)| leaf.detach().copy()).ok_or_else(|| wrong(format!("there is no {name}")))
            };
            self.offline.push(pets(self.config, &copy)?);
        }
        let part = |what: &str| double_leaf(self.recording, &format!("input.task{task}.classifier.{what}"));
        self.classifiers.push([part("weight")?, part("bias")?]);
        Ok(())
    }

    /// The first class of a task.
    fn first(&self, task: usize) -> i64 {
        self.config.tasks[..task].iter().sum()
    }

    /// Logits of all classes so far.
    fn logits(&self, images: &Tensor, pets: &Pets<'_>) -> Tensor {
        let features = self.vit.features(images, pets);
        let each = |[weight, bias]: &[Tensor; 2]| features.linear(weight, Some(bias));
        Tensor::cat(&self.classifiers.iter().map(each).collect::<Vec<_>>(), 1)
    }

    fn train(&self, task: usize, spec: &OptimizerSpec, train: &dyn Train) -> Result<Vec<f64>> {
        let (x, y) = (
            double(self.recording, &format!("input.task{task}.x"))?,
            self.recording.get(&format!("input.task{task}.y"))?,
        );
        let module = self.online.leaves().map(Tensor::shallow_clone).collect();
        let classifiers = self.classifiers.iter().flatten().map(Tensor::shallow_clone).collect();
        let (mut module, mut classifiers) = (Leaves::new(module, spec, train), Leaves::new(classifiers, spec, train));
        let open = self.first(task)..self.first(task) + self.config.tasks[task];
        let mut losses = Vec::new();
        for epoch in 0..self.config.num_epochs {
            let frozen = task > 0 && epoch < self.config.num_freeze_epochs;
            for batch in 0..x.size()[1] {
                let logits = self.logits(&x.get(epoch).get(batch), &self.online);
                let logits = if self.config.local_loss { only(&logits, |class| open.contains(&class)) } else { logits };
                let targets = y.get(epoch).get(batch);
                let loss = logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0);
                loss.backward();
                losses.push(loss.double_value(&[]));
                if frozen {
                    module.forget();
                } else {
                    module.update(spec.lr);
                }
                classifiers.update(spec.lr);
                self.accumulate();
            }
        }
        Ok(losses)
    }

    fn accumulate(&self) {
        let copies: Vec<Vec<&Tensor>> = self.offline.iter().map(|pets| pets.leaves().collect()).collect();
        for (index, online) in self.online.leaves().enumerate() {
            let chain: Vec<_> = copies.iter().map(|copy| copy[index].shallow_clone()).collect();
            accumulate_chain(&chain, online, self.config.ema_decay);
        }
    }

    fn compare(&self, task: usize, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let name = |what: &str| format!("task{task}.{what}");
        for (which, pets) in
            std::iter::once(("online", &self.online)).chain(self.offline.last().map(|p| ("offline", p)))
        {
            for (index, pet) in pets.pets.iter().enumerate() {
                for (part, leaf) in &pet.leaves {
                    compared.if_recorded(&name(&format!("{which}.{index}.{part}")), || Ok(leaf.detach()))?;
                }
            }
        }
        for (index, [weight, bias]) in self.classifiers.iter().enumerate() {
            compared.if_recorded(&name(&format!("classifier{index}.weight")), || Ok(weight.detach()))?;
            compared.if_recorded(&name(&format!("classifier{index}.bias")), || Ok(bias.detach()))?;
        }
        let images = double(self.recording, "input.eval.x")?;
        let online = self.logits(&images, &self.online);
        let offline: Vec<_> = self.offline.iter().map(|pets| self.logits(&images, pets)).collect();
        compared.if_recorded(&name("prob_online"), || Ok(online.softmax(-1, None::<Kind>)))?;
        if let Some(newest) = offline.last() {
            compared.if_recorded(&name("prob_offline"), || Ok(newest.softmax(-1, None::<Kind>)))?;
        }
        let ensemble = if self.config.eval_only_emas { Ensemble::Offline } else { self.config.ensemble };
        compared.tensor(&name("prediction"), &scores(&online, &offline, ensemble).argmax(-1, false))
    }
}
