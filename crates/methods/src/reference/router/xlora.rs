//! A small Llama with experts at some of its maps: this build's own model, adapter, scoring pass and all, in float32.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{
    BackboneConfig, Forward, Group, HeadKind, HeadOptions, Inputs, Layout, ModelDir, Precision, configure,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::adapter::{Adapter, AdapterConfig};
use crate::options::typed;
use crate::reference::Compared;
use crate::reference::recording::{Recording, bad, wrong};
use crate::reference::training::gradient;
use crate::router::xlora::{Config, PARTS};
use crate::router::{Expert, RouterConfig as _, RouterOptions as _};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Around {
    experts: Vec<Map<String, Value>>,
    target_modules: Vec<String>,
    layers: Vec<String>,
}

/// What `shapes` says of the model.
#[derive(Deserialize)]
struct Shapes {
    d: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    ffn: u64,
    vocab: u64,
    rms_norm_eps: f64,
    rope_theta: f64,
}

pub(super) fn repeat(recording: &Recording, compared: &mut Compared) -> Result<()> {
    let (around, own): (Around, Map<String, Value>) = recording.split(&["experts", "target_modules", "layers"])?;
    let config: Config = typed(&own, "config", &[])?;
    config.experts().validate().and_then(|()| config.validate())?;
    let dir = ModelDir::of_file(llama(recording)?, recording.file(), "frozen.")?;
    let model = configure(&dir, &HeadOptions { kind: Some(HeadKind::CausalLm), ..HeadOptions::default() })?;
    let backbone = model.build(&dir, Device::Cpu, Precision::Fp32)?;
    let mixture: Arc<dyn AdapterConfig> = mixture(&config, &around)?.into();
    let plan = Arc::new(mixture.plan(&*model)?);
    let names = names(&*model, &mixture, &around)?;
    let values = values(recording, &names)?;
    let adapter = Adapter::build(mixture, plan, &*backbone, Key::seed(0), Some(&values))?;
    let layout = layout(recording)?;
    let groups = [Group { rows: 0..layout.sequences(), hooks: &adapter }];
    let cx = Forward { train: true, ..Forward::eval(model.sites(), &layout, &groups) };
    let output = backbone.forward(&cx, &Inputs::ids(recording.get("input.input_ids")?));
    let mask = recording.get("input.attention_mask")?.to_kind(Kind::Float).unsqueeze(-1); // [b, t, 1]
    let logits = output.tensor() * &mask;
    let scalings = adapter.board().scores().ok_or_else(|| code::INTERNAL.error("there are no scalings"))?;
    compare(&config, &scalings, &mask, compared)?;
    compared.tensor("output.logits", &logits)?;
    (&logits * recording.get("input.cotangent")?).sum(Kind::Float).backward();
    for (recorded, own) in &names {
        if let Some(leaf) = adapter.params().get(own) {
            compared.if_recorded(&format!("grad.{recorded}"), || Ok(gradient(leaf)))?;
        }
    }
    Ok(())
}

/// The scalings are compared where tokens are real.
fn compare(config: &Config, scalings: &Tensor, mask: &Tensor, compared: &mut Compared) -> Result<()> {
    let mask = mask.unsqueeze(-1); // [b, t, 1, 1]
    let layers = scalings.size()[2];
    let effective: Vec<_> = (0..layers).map(|layer| config.effective(&scalings.select(2, layer))).collect();
    for (name, found) in [("scalings", scalings.shallow_clone()), ("effective_scalings", Tensor::stack(&effective, 2))]
    {
        if compared.wants(name) {
            compared.masked(name, &found, &mask)?;
        }
    }
    Ok(())
}

/// `config.json` of the model.
fn llama(recording: &Recording) -> Result<Map<String, Value>> {
    let shapes: Shapes = serde_json::from_value(Value::Object(recording.shapes.clone()))
        .map_err(|error| wrong("shapes: do not describe the model").caused_by(error))?;
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": shapes.d, "num_hidden_layers": shapes.layers,
        "num_attention_heads": shapes.heads, "num_key_value_heads": shapes.kv_heads, "intermediate_size": shapes.ffn,
        "vocab_size": shapes.vocab, "rms_norm_eps": shapes.rms_norm_eps, "rope_theta": shapes.rope_theta,
        "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    if let Value::Object(config) = config { Ok(config) } else { Err(wrong("shapes: do not describe the model")) }
}

fn mixture(config: &Config, around: &Around) -> Result<Box<dyn AdapterConfig>> {
    let experts = around.experts.iter().enumerate().map(|(number, options)| {
        let mut options = options.clone();
        options.insert("target_modules".to_owned(), json!(around.target_modules));
        Expert::copies("lora", &options, 1).into_iter().map(move |mut expert| {
            expert.child.name = format!("e{number}");
            expert.child.frozen = (!config.use_trainable_adapters).then_some(true);
            expert
        })
    });
    config.combine(experts.flatten().collect())
}

/// Names of the recording's tensors, without what stands in front, and of ours.
fn names(
    model: &dyn BackboneConfig,
    mixture: &Arc<dyn AdapterConfig>,
    around: &Around,
) -> Result<BTreeMap<String, String>> {
    let plan = mixture.plan(model)?;
    let mut names = BTreeMap::new();
    let sites: Vec<_> = plan.sites.iter().map(|site| model.sites()[*site].path.clone()).collect();
    if sites != around.layers {
        return Err(wrong("config.layers: are not the maps that `target_modules` names, in their order"));
    }
    for (number, _) in around.experts.iter().enumerate() {
        for layer in &around.layers {
            for (theirs, ours) in [("lora_a", "lora_A"), ("lora_b", "lora_B")] {
                let own = format!("e{number}.base_model.model.{layer}.{ours}.weight");
                names.insert(format!("expert.{number}.{layer}.{theirs}"), own);
            }
        }
    }
    for tensor in plan.tensors.iter().filter(|tensor| PARTS.contains(&tensor.part)) {
        let rest = tensor.name.trim_start_matches("base_model.internal_xlora_classifier.");
        names.insert(format!("classifier.{rest}"), tensor.name.clone());
    }
    Ok(names)
}

fn values(recording: &Recording, names: &BTreeMap<String, String>) -> Result<BTreeMap<String, Tensor>> {
    let value = |(recorded, own): (&String, &String)| {
        let found =
            recording.find(&format!("param.{recorded}")).or_else(|| recording.find(&format!("frozen.{recorded}")));
        Ok((own.clone(), found.ok_or_else(|| bad(format!("param.{recorded} is missing")))?))
    };
    names.iter().map(value).collect()
}

fn layout(recording: &Recording) -> Result<Layout> {
    let mask = recording.get("input.attention_mask")?;
    let lengths = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    let lengths =
        Vec::<i64>::try_from(lengths).map_err(|error| bad("input.attention_mask cannot be read").caused_by(error))?;
    let samples = (0..lengths.len() as u64).collect();
    let lengths = lengths.into_iter().map(|length| length as usize).collect();
    Ok(Layout::padded(lengths, mask.size()[1] as usize, samples, Device::Cpu))
}
