//! Page 8, VL-Adapter: adapters that tasks share in four ways, Compacter, Hyperformer, adapters in BART's blocks, and the
//! embedding of visual features.

mod bart;
mod parts;
mod visual;

use std::collections::BTreeMap;

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::Tensor;

use self::parts::{Leaves, bottleneck};
use super::recording::{Recording, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::bottleneck::{Affine, Net, finished};
use crate::adapter::common::Activation;
use crate::around::AroundOptions as _;
use crate::options::typed;
use crate::strategy::vl_multitask::hyper::{Generator, HyperNet};
use crate::strategy::vl_multitask::{Config, Sharing, shared};

pub(super) const PAGE: Page = Page { number: 8, tolerances: &[], repeat };

/// The options of the case that are not the strategy's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    adapter: Option<Value>,
    /// One way to share or several.
    sharing: Option<OneOrMany>,
    tasks: Vec<String>,
    num_heads: Option<i64>,
    ffn_activation: Option<String>,
    layers: Option<i64>,
    use_vis_layer_norm: Option<bool>,
    individual_vis_layer_norm: Option<bool>,
    use_vis_order_embedding: Option<bool>,
    feat_dim: Option<i64>,
    n_images: Option<i64>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Sharing),
    Many(Vec<Sharing>),
}

const AROUND: &[&str] = &[
    "adapter",
    "sharing",
    "tasks",
    "num_heads",
    "ffn_activation",
    "layers",
    "use_vis_layer_norm",
    "individual_vis_layer_norm",
    "use_vis_order_embedding",
    "feat_dim",
    "n_images",
];

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    around: Around,
    activation: Activation,
}

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    if recording.kind != "module" {
        return Err(wrong(format!("kind: page 8 has no {}", recording.kind)));
    }
    let (around, mut rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
    let names = if around.tasks.is_empty() { vec!["one".to_owned()] } else { around.tasks.clone() };
    let tasks: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    rest.insert("tasks".to_owned(), Value::Array(tasks));
    let config: Config = typed(&rest, "config", &[])?;
    config.validate()?;
    let activation = Activation::parse("non_linearity", &config.non_linearity)?;
    let case = Case { recording, config, around, activation };
    let has = |name: &str| recording.under("param.").any(|param| param.starts_with(name));
    if has("task_embedding.") {
        case.hyper(compared)?;
    } else if has("down.C") || has("down.W") {
        case.products(compared)?;
    } else if has("feat_embedding.") {
        case.visual(compared)?;
    } else if has("encoder.") || has("decoder.") {
        case.bart(compared)?;
    } else {
        case.sharing(compared)?;
    }
    compared.check_used(recording);
    Ok(())
}

impl Case<'_> {
    /// `sum(output * cotangent)`.
    fn weighted(&self, output: &Tensor, cotangent: &str) -> Result<Tensor> {
        Ok((output * self.recording.get(cotangent)?).sum(output.kind()))
    }

    /// Every way to share, on the same inputs.
    fn sharing(&self, compared: &mut Compared) -> Result<()> {
        let modes = match &self.around.sharing {
            Some(OneOrMany::One(mode)) => vec![*mode],
            Some(OneOrMany::Many(modes)) => modes.clone(),
            None => return Err(wrong("config.sharing is missing")),
        };
        for mode in modes {
            self.shared(mode, compared)?;
        }
        Ok(())
    }

    fn shared(&self, mode: Sharing, compared: &mut Compared) -> Result<()> {
        let first = self.around.tasks.first().ok_or_else(|| wrong("config.tasks is empty"))?;
        let mut leaves = Leaves::new(self.recording);
        let mut loss: Option<Tensor> = None;
        for task in &self.around.tasks {
            let of = |part: &str| if shared(mode, part) { first } else { task };
            let (down, up) = (of("adapter_down.weight"), of("adapter_up.weight"));
            let adapter = bottleneck(&mut leaves, &self.config, [&format!("{down}.down"), &format!("{up}.up")], "")?;
            let x = self.recording.get(&format!("input.x.{task}"))?;
            let output = adapter.run(&x);
            compared.tensor(&format!("{mode}.output.{task}"), &output)?;
            let own = self.weighted(&output, &format!("input.cotangent.{task}"))?;
            loss = Some(loss.map_or_else(|| own.shallow_clone(), |loss| loss + &own));
        }
        if let Some(loss) = loss {
            loss.backward();
        }
        for (name, leaf) in leaves.all() {
            compared.if_recorded(&format!("{mode}.grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }

    /// Compacter.
    fn products(&self, compared: &mut Compared) -> Result<()> {
        let mut leaves = Leaves::new(self.recording);
        let (down, up) = (leaves.products("down")?, leaves.products("up")?);
        compared.if_recorded("down.H", || Ok(down.matrix()))?;
        compared.if_recorded("up.H", || Ok(up.matrix()))?;
        let (norm_before, norm_after) = leaves.norms(&self.config, "")?;
        let (down, up) = (Affine::Products(down), Affine::Products(up));
        let net = Net { norm_before, down, activation: self.activation, up };
        let x = self.recording.leaf("input.x")?;
        let output = finished(&net.run(&x), &x, norm_after.as_ref());
        compared.tensor("output", &output)?;
        self.weighted(&output, "input.cotangent")?.backward();
        compared.if_recorded("grad.input", || Ok(gradient(&x)))?;
        for (name, leaf) in leaves.all() {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }

    /// Hyperformer: every task, block and place.
    fn hyper(&self, compared: &mut Compared) -> Result<()> {
        let mut leaves = Leaves::new(self.recording);
        let net = HyperNet {
            layers: leaves.get("layer_id_embeddings.weight")?,
            first: leaves.pair("mlp.0")?,
            second: leaves.pair("mlp.2")?,
            norm: leaves.pair("LayerNorm")?,
        };
        let keys: Vec<String> = self.recording.under("input.x.").map(str::to_owned).collect();
        let mut generators: BTreeMap<String, [Generator; 2]> = BTreeMap::new();
        let mut loss: Option<Tensor> = None;
        for key in &keys {
            let odd = || wrong(format!("input.x.{key} is not TASK.LAYER.SITE"));
            let (rest, site) = key.rsplit_once('.').ok_or_else(odd)?;
            let (task, layer) = rest.rsplit_once('.').ok_or_else(odd)?;
            let layer: i64 = layer.parse().map_err(|_| odd())?;
            if !generators.contains_key(site) {
                let both = [leaves.generator(&format!("{site}_down"))?, leaves.generator(&format!("{site}_up"))?];
                generators.insert(site.to_owned(), both);
            }
            let e = net.embed(&leaves.get(&format!("task_embedding.{task}"))?, layer);
            let [down, up] = generators[site].each_ref().map(|generator| generator.make(&e));
            for (end, [weight, bias]) in [("down", &down), ("up", &up)] {
                compared.if_recorded(&format!("{end}_weight.{key}"), || Ok(weight.shallow_clone()))?;
                compared.if_recorded(&format!("{end}_bias.{key}"), || Ok(bias.shallow_clone()))?;
            }
            let affine = |[weight, bias]: [Tensor; 2]| Affine::Plain { weight, bias };
            let made = Net { norm_before: None, down: affine(down), activation: self.activation, up: affine(up) };
            let x = self.recording.get(&format!("input.x.{key}"))?;
            let output = finished(&made.run(&x), &x, None);
            compared.tensor(&format!("output.{key}"), &output)?;
            let own = self.weighted(&output, &format!("input.cotangent.{key}"))?;
            loss = Some(loss.map_or_else(|| own.shallow_clone(), |loss| loss + &own));
        }
        if let Some(loss) = loss {
            loss.backward();
        }
        for (name, leaf) in leaves.all() {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }
}
