//! Page 42, PILL: a whole small decoder with experts, gates and projected image features, in either stage; decoding token
//! by token; and a training of both stages.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{Forward, Group, Inputs, Layout, Site, Sites};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::model::Model;
use super::recording::{Recording, bad, wrong};
use super::training::{Leaves, gradient};
use super::{Compared, Page, Train};
use crate::adapter::pill::{Config, NAMES};
use crate::adapter::{Adapter, AdapterConfig as _, Options as _};
use crate::options::typed;
use crate::plan::{Plan, PlannedTensor};

pub(super) const PAGE: Page = Page { number: 42, tolerances: &[], repeat };

/// The options of the case that are not the method's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    decode: Option<Decode>,
}

/// Decoding of one example behind its first tokens.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    example: i64,
    prompt: i64,
}

const AROUND: &[&str] = &["decode"];
const STAGE: &str = "stage";

/// A batch as it was recorded.
struct Batch {
    tokens: Tensor,   // [b, s]
    modality: Tensor, // [b, s]
    features: Tensor, // [b, s, width]
}

struct Case<'a> {
    recording: &'a Recording,
    rest: Map<String, Value>,
    model: Model,
    /// Tokens of an image.
    each: i64,
}

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let (around, rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
    let config = options(&rest, None)?;
    let each = i64::from(config.visual.tokens);
    let case = Case { recording, rest, model: model(recording)?, each };
    match recording.kind.as_str() {
        "module" => case.module(around.decode, compared)?,
        "training" => case.training(train, compared)?,
        other => return Err(wrong(format!("kind: page 42 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

/// The method's options, in one stage of them where one is named.
fn options(rest: &Map<String, Value>, stage: Option<&Value>) -> Result<Config> {
    let mut rest = rest.clone();
    if let Some(stage) = stage {
        rest.insert(STAGE.to_owned(), stage.clone());
    }
    let config: Config = typed(&rest, "config", &[])?;
    config.validate()?;
    Ok(config)
}

/// The release's decoder as ours. It rotates neighbouring numbers of a head, ours those half a head apart.
fn model(recording: &Recording) -> Result<Model> {
    let (mut layers, mut tensors) = (0, BTreeMap::new());
    let names: Vec<String> = recording.under("frozen.").map(str::to_owned).collect();
    let gate = recording.get("param.layers.0.attention.vis_adapter_gate.weight");
    let gate = gate.or_else(|_| recording.get("frozen.layers.0.attention.vis_adapter_gate.weight"))?;
    let (heads, width) = (gate.size()[0], gate.size()[1]);
    for name in names.iter().filter(|name| !name.contains("adapter")) {
        let (found, ours) = (recording.get(&format!("frozen.{name}"))?, our_name(name)?);
        let turned = name.ends_with("attention.wq.weight") || name.ends_with("attention.wk.weight");
        let tensor = if turned { halves(&found, width / heads) } else { found };
        let number = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        layers = layers.max(number.map_or(0, |number| number + 1));
        tensors.insert(ours, tensor);
    }
    let rows = |name: &str| recording.get(&format!("frozen.{name}")).map(|tensor| tensor.size()[0]);
    let config = json!({
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": rows("layers.0.attention.wk.weight")? * heads / width,
        "intermediate_size": rows("layers.0.feed_forward.w1.weight")?, "vocab_size": rows("tok_embeddings.weight")?,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let Value::Object(config) = config else { return Err(wrong("no model")) };
    Model::causal(config, &tensors)
}

/// Our name of a tensor of the release's decoder.
fn our_name(name: &str) -> Result<String> {
    const TOP: [(&str, &str); 3] = [
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    const INNER: [(&str, &str); 9] = [
        ("attention.wq", "self_attn.q_proj"),
        ("attention.wk", "self_attn.k_proj"),
        ("attention.wv", "self_attn.v_proj"),
        ("attention.wo", "self_attn.o_proj"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
    ];
    if let Some((_, ours)) = TOP.iter().find(|(theirs, _)| *theirs == name) {
        return Ok((*ours).to_owned());
    }
    let inner = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).and_then(|(number, rest)| {
        let (_, ours) = INNER.iter().find(|(theirs, _)| rest.strip_suffix(".weight") == Some(*theirs))?;
        Some(format!("model.layers.{number}.{ours}.weight"))
    });
    inner.ok_or_else(|| bad(format!("frozen.{name}: not a tensor of this decoder")))
}

/// Rows of each head with even ones first.
fn halves(weight: &Tensor, width: i64) -> Tensor {
    let size = weight.size();
    weight.reshape([-1, width / 2, 2, size[1]]).transpose(1, 2).reshape(&size)
}

/// The release's name of a planned tensor.
fn their_name(sites: &Sites, tensor: &PlannedTensor, config: &Config) -> Result<String> {
    let kinds = config.kinds()?;
    let called = |number: usize| match kinds.get(number).map(|kind| kind.name.as_str()) {
        Some("text") => "txt".to_owned(),
        Some("image") => "vis".to_owned(),
        other => other.unwrap_or_default().to_owned(),
    };
    let site: &Site = &sites[tensor.site];
    let layer = site.block.map(|block| format!("layers.{block}.")).unwrap_or_default();
    let last = |what: &str| match what {
        what if what.contains("down_gate") => "down_sampler_gate",
        what if what.contains("down") => "down_sampler",
        _ => "up_sampler",
    };
    if tensor.part.starts_with("pill_attn") {
        return Ok(format!("{layer}adapter_attn.{}.weight", last(tensor.part)));
    }
    let number = NAMES.iter().position(|names| {
        let expert = names.expert;
        [names.project, names.gate, expert.down, expert.down_gate, expert.up].contains(&tensor.part)
    });
    let number = number.ok_or_else(|| wrong(format!("there is no {} in the release", tensor.part)))?;
    let (names, called) = (&NAMES[number], called(number));
    Ok(match tensor.part {
        part if part == names.project => format!("{called}_adapter_proj.weight"),
        part if part == names.gate => format!("{layer}attention.{called}_adapter_gate.weight"),
        part => format!("{layer}{called}_adapter_ffn.{}.weight", last(part)),
    })
}

impl Case<'_> {
    /// The adapter of some options, from these values by the release's names.
    fn adapter(&self, config: Config, values: &dyn Fn(&str) -> Result<Tensor>) -> Result<(Adapter, Vec<String>)> {
        let plan: Plan = config.plan(self.model.config.as_ref())?;
        let names = |tensor: &PlannedTensor| their_name(self.model.config.sites(), tensor, &config);
        let theirs: Vec<String> = plan.tensors.iter().map(names).collect::<Result<_>>()?;
        let value = |(tensor, name): (&PlannedTensor, &String)| Ok((tensor.name.clone(), values(name)?));
        let values = plan.tensors.iter().zip(&theirs).map(value).collect::<Result<_>>()?;
        let (config, plan) = (Arc::new(config), Arc::new(plan));
        let adapter = Adapter::build(config, plan, self.model.backbone.as_ref(), Key::seed(0), Some(&values))?;
        Ok((adapter, theirs))
    }

    /// A recorded parameter, trained or not.
    fn value(&self, name: &str) -> Result<Tensor> {
        let found = self.recording.find(&format!("param.{name}"));
        found
            .or_else(|| self.recording.find(&format!("frozen.{name}")))
            .ok_or_else(|| bad(format!("param.{name} is missing")))
    }

    /// `[b, images, tokens, width]` to `[b, s, width]`: features at the places of their images, in order.
    fn batch(&self, [tokens, modality, images]: [Tensor; 3]) -> Result<Batch> {
        let (size, width) = (images.size(), images.size()[3]);
        if size[2] != self.each {
            return Err(bad(format!("an image has {} tokens, and config.visual.tokens says {}", size[2], self.each)));
        }
        let flat = images.flatten(1, 2).to_kind(Kind::Float);
        let features = Tensor::zeros([size[0], tokens.size()[1], width], (Kind::Float, Device::Cpu));
        for row in 0..size[0] {
            let places = modality.get(row).ne(0).nonzero().squeeze_dim(1);
            let n = places.size()[0];
            if n % self.each != 0 || n > flat.size()[1] {
                return Err(bad(format!("example {row} has {n} places, not whole images of those there are")));
            }
            let _ = features.get(row).index_copy_(0, &places, &flat.get(row).narrow(0, 0, n));
        }
        Ok(Batch { tokens, modality, features })
    }

    fn logits(&self, adapter: &Adapter, batch: &Batch) -> Tensor {
        let size = batch.tokens.size();
        let (rows, width) = (size[0] as usize, size[1] as usize);
        let layout = Layout::padded(vec![width; rows], width, (0..rows as u64).collect(), Device::Cpu)
            .with_modality(Some(batch.modality.shallow_clone()));
        let groups = [Group { rows: 0..rows, hooks: adapter }];
        let cx = Forward { train: true, ..Forward::eval(self.model.config.sites(), &layout, &groups) };
        let inputs = Inputs::ids(batch.tokens.shallow_clone()).with("features", batch.features.shallow_clone());
        self.model.backbone.forward(&cx, &inputs).tensor().shallow_clone()
    }

    fn module(&self, decode: Option<Decode>, compared: &mut Compared) -> Result<()> {
        let (adapter, names) = self.adapter(options(&self.rest, None)?, &|name| self.value(name))?;
        let input = |what: &str| self.recording.get(&format!("input.{what}"));
        let batch = self.batch([input("tokens")?, input("modality")?, input("image_features")?])?;
        let logits = self.logits(&adapter, &batch);
        let loss = loss(&logits, &input("labels")?);
        loss.backward();
        compared.tensor("output.logits", &logits)?;
        compared.tensor("loss", &loss.detach())?;
        for (tensor, name) in adapter.plan().tensors.iter().zip(&names) {
            if let Some(leaf) = adapter.params().get(&tensor.name) {
                compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
            }
        }
        let Some(Decode { example, prompt }) = decode else { return Ok(()) };
        compared.tensor("output.decode", &tch::no_grad(|| self.decoded(&adapter, &batch, (example, prompt)))?)
    }

    /// Logits behind the prompt and behind each further token, seen as far as that token and no farther.
    fn decoded(&self, adapter: &Adapter, batch: &Batch, (example, prompt): (i64, i64)) -> Result<Tensor> {
        let (rows, tokens) = (batch.tokens.size()[0], batch.tokens.size()[1]);
        if !(0..rows).contains(&example) || !(1..=tokens).contains(&prompt) {
            return Err(wrong("config.decode: there is no such example or prompt"));
        }
        let until = |n: i64| {
            let cut = |tensor: &Tensor| tensor.narrow(0, example, 1).narrow(1, 0, n);
            let [tokens, modality, features] = [&batch.tokens, &batch.modality, &batch.features].map(cut);
            self.logits(adapter, &Batch { tokens, modality, features }).get(0).get(n - 1)
        };
        Ok(Tensor::stack(&(prompt..=tokens).map(until).collect::<Vec<_>>(), 0))
    }

    /// Each stage with an optimiser of its own, from what the one before it left.
    fn training(&self, train: &dyn Train, compared: &mut Compared) -> Result<()> {
        let stages = self.rest.get(STAGE).cloned().unwrap_or_default();
        let stages = stages.as_array().cloned().ok_or_else(|| wrong("config.stage: not a list of stages"))?;
        let spec = self.recording.optimizer()?;
        let mut now: BTreeMap<String, Tensor> = BTreeMap::new();
        for stage in &stages {
            let called = stage.as_str().ok_or_else(|| wrong("config.stage: not a list of names"))?;
            let value = |name: &str| now.get(name).map_or_else(|| self.value(name), |value| Ok(value.shallow_clone()));
            let (adapter, names) = self.adapter(options(&self.rest, Some(stage))?, &value)?;
            let leaves = adapter.params().iter().map(|(_, leaf)| leaf.shallow_clone()).collect();
            let mut leaves = Leaves::new(leaves, &spec, train);
            let input = |what: &str| self.recording.get(&format!("input.{called}.{what}"));
            let all = [input("tokens")?, input("modality")?, input("image_features")?];
            let (labels, rates) = (input("labels")?, input("lr")?);
            let mut losses = Vec::new();
            for step in 0..rates.size()[0] {
                let batch = self.batch([0, 1, 2].map(|i| all[i].get(step)))?;
                let loss = loss(&self.logits(&adapter, &batch), &labels.get(step));
                losses.push(leaves.step(&loss, rates.double_value(&[step]))?);
            }
            compared.tensor(&format!("{called}.loss"), &Tensor::stack(&losses, 0))?;
            for (tensor, name) in adapter.plan().tensors.iter().zip(&names) {
                let value = adapter.parts().get(&tensor.name)?.detach().copy();
                compared.if_recorded(&format!("{called}.{name}"), || Ok(value.shallow_clone()))?;
                now.insert(name.clone(), value);
            }
        }
        Ok(())
    }
}

/// The mean over all positions whose next label is not 0.
fn loss(logits: &Tensor, labels: &Tensor) -> Tensor {
    let (width, vocabulary) = (logits.size()[1], logits.size()[2]);
    let predicted = logits.narrow(1, 0, width - 1).reshape([-1, vocabulary]);
    let targets = labels.narrow(1, 1, width - 1).reshape([-1]);
    predicted.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Mean, 0, 0.0)
}
