//! Trainings of a Vision Transformer with coded adapters, AdaptFormer's or LoRA's, and what is left in the file.

use pleach_base::Result;
use pleach_spec::job::OptimizerSpec;
use serde::Deserialize;
use tch::{Kind, Reduction, Tensor};

use super::super::recording::{Recording, wrong};
use super::super::training::Leaves;
use super::super::vit::{Inside, Vit};
use super::super::{Compared, Train};
use crate::adapter::common::{Activation, Branch};
use crate::codes::{Codec, Measure, Per, Record};

/// Means and deviations in a file, whose training ran in another precision.
const SPREAD_REL: f64 = 1e-4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    bit: u32,
    scale: f64,
    #[serde(default)]
    bihead: bool,
    #[serde(default)]
    codebook: Measure,
    #[serde(default)]
    per: Per,
    wraps: Wraps,
    /// The shapes and the recorded masks say it.
    #[serde(default, rename = "dim")]
    _dim: Option<u32>,
    #[serde(default, rename = "dropout")]
    _dropout: Option<f64>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Wraps {
    Adaptformer,
    Lora,
}

impl Wraps {
    /// The modules of a block, in a file's order.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Adaptformer => &["adapter_mlp"],
            Self::Lora => &["attn.lora_q", "attn.lora_v"],
        }
    }

    fn activation(self) -> Activation {
        match self {
            Self::Adaptformer => Activation::Relu,
            Self::Lora => Activation::Linear,
        }
    }
}

/// A latent matrix that is trained.
struct Latent {
    name: String,
    leaf: Tensor,
}

struct Case<'a> {
    recording: &'a Recording,
    options: Options,
    optimizer: OptimizerSpec,
    codec: Codec,
    vit: Vit<'a>,
    /// Down and up of every module of every block in order; then the head.
    latent: Vec<Latent>,
    head_bias: Option<Tensor>,
}

/// What runs in one pass: the maps as they are now, and what is dropped.
struct Now<'a> {
    case: &'a Case<'a>,
    weights: Vec<Tensor>,
    /// The step whose recorded masks are used.
    step: Option<i64>,
}

pub(super) fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let all: Vec<_> = recording.config.keys().map(String::as_str).collect();
    let (options, _) = recording.split(&all)?;
    let (optimizer, more) = recording.optimizer_and(&["schedule"])?;
    if more.get("schedule").is_some_and(|schedule| schedule != "constant") {
        return Err(wrong("config.optimizer.schedule: only `constant` is known"));
    }
    let case = Case::new(recording, options, optimizer)?;
    let eval = recording.get("input.x_eval")?;
    compared.tensor("output.initial", &tch::no_grad(|| case.logits(&eval, case.coded(), None))?)?;
    case.train(train, compared)?;
    compared.tensor("output.final", &tch::no_grad(|| case.logits(&eval, case.coded(), None))?)?;
    case.artifact(&eval, compared)
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording, options: Options, optimizer: OptimizerSpec) -> Result<Self> {
        let codec = Codec { bit: options.bit, codebook: options.codebook, per: options.per };
        let vit = Vit::new(recording, recording.shape("heads")?, Kind::Double);
        let mut names = Vec::new();
        for block in 0..vit.depth {
            for module in options.wraps.modules() {
                names.extend(["down", "up"].map(|end| format!("blocks.{block}.{module}.adapter_{end}.weight")));
            }
        }
        names.push("head.weight".to_owned());
        let leaf = |name: &str| -> Result<Tensor> {
            Ok(recording.get(&format!("param.{name}"))?.to_kind(Kind::Double).set_requires_grad(true))
        };
        let latent = names.into_iter().map(|name| Ok(Latent { leaf: leaf(&name)?, name })).collect::<Result<_>>()?;
        let head_bias = if options.bihead { None } else { Some(leaf("head.bias")?) };
        Ok(Self { recording, options, optimizer, codec, vit, latent, head_bias })
    }

    /// Every matrix as training sees it now.
    fn coded(&self) -> Vec<Tensor> {
        let last = self.latent.len() - 1;
        let one = |(at, latent): (usize, &Latent)| {
            let coded = at < last || self.options.bihead;
            if coded { self.codec_at(at).coded(&latent.leaf) } else { latent.leaf.shallow_clone() }
        };
        self.latent.iter().enumerate().map(one).collect()
    }

    /// A coded head has one bit a weight, whatever the others have.
    fn codec_at(&self, at: usize) -> Codec {
        if at + 1 == self.latent.len() { Codec { bit: 1, ..self.codec } } else { self.codec }
    }

    fn logits(&self, images: &Tensor, weights: Vec<Tensor>, step: Option<i64>) -> Result<Tensor> {
        let now = Now { case: self, weights, step };
        let pooled = self.vit.pooled(images, &now)?;
        let head = now.weights.last().ok_or_else(|| wrong("there is no head"))?;
        Ok(pooled.linear(head, self.head_bias.as_ref()))
    }

    fn leaves(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let bias = self.head_bias.iter().map(|bias| ("head.bias", bias));
        self.latent.iter().map(|latent| (latent.name.as_str(), &latent.leaf)).chain(bias)
    }

    fn train(&self, train: &dyn Train, compared: &mut Compared) -> Result<()> {
        let (x, y) = (self.recording.get("input.x")?, self.recording.get("input.y")?);
        let mut leaves =
            Leaves::new(self.leaves().map(|(_, leaf)| leaf.shallow_clone()).collect(), &self.optimizer, train);
        let mut losses = Vec::new();
        for step in 0..x.size()[0] {
            let logits = self.logits(&x.get(step), self.coded(), Some(step))?;
            let loss = logits.cross_entropy_loss(&y.get(step), None::<&Tensor>, Reduction::Mean, -100, 0.0);
            if step == 0 {
                self.first_gradients(&loss, compared)?;
            }
            losses.push(leaves.step(&loss, self.optimizer.lr)?);
        }
        compared.tensor("loss", &Tensor::stack(&losses, 0))?;
        for (name, leaf) in self.leaves() {
            compared.if_recorded(&format!("param.{name}"), || Ok(leaf.detach()))?;
        }
        Ok(())
    }

    fn first_gradients(&self, loss: &Tensor, compared: &mut Compared) -> Result<()> {
        let leaves: Vec<_> = self.leaves().map(|(_, leaf)| leaf).collect();
        let grads = Tensor::run_backward(&[loss], &leaves, true, false);
        for ((name, _), grad) in self.leaves().zip(&grads) {
            compared.if_recorded(&format!("grad.{name}"), || Ok(grad.shallow_clone()))?;
        }
        Ok(())
    }

    /// The file, and the model with what is read from it.
    fn artifact(&self, eval: &Tensor, compared: &mut Compared) -> Result<()> {
        let last = self.latent.len() - 1;
        let (mut bytes, mut spreads) = (Vec::new(), Vec::new());
        for (at, latent) in self.latent.iter().enumerate() {
            let codec = if at < last || self.options.bihead { self.codec_at(at) } else { plain(self.codec) };
            let record = Record::of(codec, &latent.leaf);
            record.write(&mut bytes);
            let spread = 4 * (record.mu.len() + record.sigma.len());
            spreads.push(bytes.len() - spread..bytes.len());
        }
        if let Some(bias) = &self.head_bias {
            Record::of(plain(self.codec), &bias.unsqueeze(0)).write(&mut bytes);
        }
        let read = self.read(&bytes)?;
        compared.if_recorded("output.loaded", || tch::no_grad(|| self.logits(eval, read, None)))?;
        if let Some(expected) = self.recording.find("expected.artifact_bytes") {
            let expected = Vec::<u8>::try_from(expected).unwrap_or_default();
            for range in spreads {
                take_near(&mut bytes, &expected, range);
            }
            compared.tensor("artifact_bytes", &Tensor::from_slice(&bytes))?;
        }
        Ok(())
    }

    fn read(&self, mut bytes: &[u8]) -> Result<Vec<Tensor>> {
        let last = self.latent.len() - 1;
        let one = |(at, latent): (usize, &Latent)| {
            let codec = if at < last || self.options.bihead { self.codec_at(at) } else { plain(self.codec) };
            let shape = latent.leaf.size();
            let record = Record::read(codec, [shape[0] as usize, shape[1] as usize], &mut bytes)?;
            Ok(record.weight().to_kind(Kind::Double))
        };
        self.latent.iter().enumerate().map(one).collect()
    }
}

fn plain(codec: Codec) -> Codec {
    Codec { bit: 32, ..codec }
}

/// Takes over the expected floats of a range where ours are as good as those.
fn take_near(ours: &mut [u8], expected: &[u8], range: std::ops::Range<usize>) {
    let (Some(ours), Some(expected)) = (ours.get_mut(range.clone()), expected.get(range)) else { return };
    for (own, other) in ours.chunks_exact_mut(4).zip(expected.chunks_exact(4)) {
        let value = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if (value(own) - value(other)).abs() <= SPREAD_REL * value(other).abs() + 1e-8 {
            own.copy_from_slice(other);
        }
    }
}

impl Now<'_> {
    /// The branch called `module` of a block on `h`.
    fn branch(&self, block: usize, module: &str, h: &Tensor) -> Option<Tensor> {
        let Case { options, recording, .. } = self.case;
        let modules = options.wraps.modules();
        let at = 2 * (block * modules.len() + modules.iter().position(|name| *name == module)?);
        let branch = Branch {
            down: (self.weights[at].shallow_clone(), None),
            up: (self.weights[at + 1].shallow_clone(), None),
            activation: options.wraps.activation(),
            scale: options.scale,
        };
        let keep = self.step.and_then(|step| {
            let masks = recording.find(&format!("input.dropout_mask.blocks.{block}.{module}.dropout"))?;
            Some(masks.get(step).to_kind(h.kind()))
        });
        Some(branch.run(h, keep.as_ref()))
    }
}

impl Inside for Now<'_> {
    fn attention(&self, block: usize, normed: &Tensor) -> [Option<Tensor>; 3] {
        [self.branch(block, "attn.lora_q", normed), None, self.branch(block, "attn.lora_v", normed)]
    }

    fn beside_mlp(&self, block: usize, residual: &Tensor) -> Option<Tensor> {
        self.branch(block, "adapter_mlp", residual)
    }
}
