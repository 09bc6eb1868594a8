//! `h = h + moe(h / rms(h))`, layer by layer, without attention; padding goes through like any other token.

use std::collections::BTreeMap;

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::adapter::common::Activation;
use crate::adapter::{Options as _, lora};
use crate::options::typed;
use crate::reference::Compared;
use crate::reference::recording::{Recording, wrong};
use crate::reference::training::gradient;
use crate::router::RouterOptions as _;
use crate::router::dispatch::Rows;
use crate::router::losses;
use crate::router::mixlora::{Config, Strategy};

/// The options of the experts.
const EXPERT: &[&str] = &["r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules"];

/// The maps of a feed-forward part.
const MAPS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    act_fn: Option<String>,
}

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    activation: Activation,
    scaling: f64,
    experts: usize,
    leaves: BTreeMap<String, Tensor>,
}

/// What one layer gave.
struct Layer {
    output: Tensor,
    logits: Tensor,
    selected: Tensor,
    gates: Tensor,
    /// Sums with the mask and without it.
    sums: [Tensor; 2],
}

pub(super) fn repeat(recording: &Recording, compared: &mut Compared) -> Result<()> {
    let case = Case::new(recording)?;
    let x = recording.leaf("input.x")?;
    let mask = recording.find("input.attention_mask").map(|mask| mask.flatten(0, -1));
    let (mut hidden, mut layers) = (x.shallow_clone(), Vec::new());
    for number in 0..case.layers() {
        let layer = case.layer(number, &hidden, mask.as_ref())?;
        hidden = hidden.g_add(&layer.output);
        layers.push(layer);
    }
    let loss = |which: usize| {
        let all = layers.iter().map(|layer| layer.sums[which].shallow_clone()).reduce(|sum, one| sum + one);
        all.map(|all| losses::loss(&all, case.config.coefficients())).ok_or_else(|| wrong("there are no layers"))
    };
    // The nucleus is balanced over all tokens, padding too.
    let masked = loss(usize::from(mask.is_none() || case.config.routing_strategy == Strategy::TopP))?;
    let total = (&hidden * recording.get("input.cotangent")?).sum(hidden.kind()) + &masked;
    total.backward();
    compared.tensor("output", &hidden)?;
    compared.if_recorded("balance_loss", || Ok(masked.shallow_clone()))?;
    compared.if_recorded("balance_loss_without_mask", || loss(1))?;
    let stacked = |of: &dyn Fn(&Layer) -> &Tensor| Tensor::stack(&layers.iter().map(of).collect::<Vec<_>>(), 0);
    compared.if_recorded("router_logits", || Ok(stacked(&|layer| &layer.logits)))?;
    compared.if_recorded("selected", || Ok(stacked(&|layer| &layer.selected)))?;
    compared.if_recorded("gates", || Ok(stacked(&|layer| &layer.gates)))?;
    for (number, layer) in layers.iter().enumerate() {
        compared.if_recorded(&format!("moe_output.{number}"), || Ok(layer.output.shallow_clone()))?;
    }
    compared.if_recorded("grad.input.x", || Ok(gradient(&x)))?;
    for (name, leaf) in &case.leaves {
        compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
    }
    Ok(())
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording) -> Result<Self> {
        let (around, rest): (Around, Map<String, Value>) = recording.split(&["act_fn"])?;
        let (expert, own): (Map<_, _>, Map<_, _>) =
            rest.into_iter().partition(|(key, _)| EXPERT.contains(&key.as_str()));
        let config: Config = typed(&own, "config", &[])?;
        config.experts().validate().and_then(|()| config.validate())?;
        let expert: lora::Config = typed(&expert, "config", &[])?;
        expert.validate()?;
        if expert.lora_dropout != 0.0 {
            return Err(wrong("config.lora_dropout: no draws are recorded"));
        }
        let (r, alpha) = (f64::from(expert.r), expert.lora_alpha);
        let mut leaves = BTreeMap::new();
        for name in recording.under("param.") {
            leaves.insert(name.to_owned(), recording.leaf(&format!("param.{name}"))?);
        }
        let activation = Activation::parse("act_fn", around.act_fn.as_deref().unwrap_or("silu"))?;
        let scaling = if expert.use_rslora { alpha / r.sqrt() } else { alpha / r };
        let experts = config.experts().count();
        Ok(Self { recording, config, activation, scaling, experts, leaves })
    }

    fn layers(&self) -> usize {
        (0..).take_while(|layer| self.leaves.contains_key(&format!("layers.{layer}.router.weight"))).count()
    }

    fn layer(&self, number: usize, hidden: &Tensor, mask: Option<&Tensor>) -> Result<Layer> {
        let mean = hidden.square().mean_dim([-1i64].as_slice(), true, None::<Kind>);
        let mut u = hidden * (mean + 1e-6).rsqrt();
        match self.recording.find(&format!("input.jitter.{number}")) {
            Some(factors) => u = u.g_mul(&factors),
            None if self.config.jitter_noise != 0.0 => return Err(wrong("config.jitter_noise: no draws are recorded")),
            None => {}
        }
        let tokens = u.flatten(0, -2);
        let logits = tokens.linear(&self.leaves[&format!("layers.{number}.router.weight")], None::<&Tensor>);
        let choice = self.config.gate().choose(&logits);
        let rows = Rows::of(&choice, self.experts);
        let results = self.feed(number, &rows.gather(&tokens), &rows.counts)?;
        let output = rows.combine(&choice, &results).reshape(hidden.size());
        let sums = [losses::sums(&logits, &choice, mask), losses::sums(&logits, &choice, None)];
        Ok(Layer { output, logits, selected: choice.experts, gates: choice.gates, sums })
    }

    /// The frozen part with the experts in it; `counts` rows of each, one behind the other.
    fn feed(&self, layer: usize, rows: &Tensor, counts: &[i64]) -> Result<Tensor> {
        let gate = self.map(layer, MAPS[0], rows, counts)?;
        let inner = self.activation.run(&gate) * self.map(layer, MAPS[1], rows, counts)?;
        self.map(layer, MAPS[2], &inner, counts)
    }

    fn map(&self, layer: usize, map: &str, x: &Tensor, counts: &[i64]) -> Result<Tensor> {
        let weight = self.recording.get(&format!("frozen.layers.{layer}.{map}.weight"))?;
        let y = x.linear(&weight, None::<&Tensor>);
        let parts = x.split_with_sizes(counts, 0);
        let factor = |expert, part| self.leaves.get(&format!("layers.{layer}.expert.{expert}.{map}.{part}"));
        if factor(0, "lora_a").is_none() {
            return Ok(y);
        }
        let mut added = Vec::new();
        for (expert, part) in parts.iter().enumerate() {
            let missing = || wrong(format!("param.layers.{layer}.expert.{expert}.{map} is missing"));
            let (a, b) = factor(expert, "lora_a").zip(factor(expert, "lora_b")).ok_or_else(missing)?;
            added.push(part.linear(a, None::<&Tensor>).linear(b, None::<&Tensor>) * self.scaling);
        }
        Ok(y + Tensor::cat(&added, 0))
    }
}
