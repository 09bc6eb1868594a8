//! Page 10, MixDA: the mixture behind a feed-forward part, and the losses of the first stage.

use pleach_base::Result;
use pleach_nn::Layout;
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::recording::{Recording, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::domain::run::Domain;
use crate::strategy::mixda::gate::{Gate, apart, mixture, pooled, spread};
use crate::strategy::mixda::{GateOptions, Query};

pub(super) const PAGE: Page = Page { number: 10, tolerances: &[], repeat };

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    let case = Case::new(recording)?;
    match recording.kind.as_str() {
        "module" => case.module(compared)?,
        "loss" => case.losses(compared)?,
        other => return Err(wrong(format!("kind: page 10 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

/// The options of a case.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    adapter_down_scale: i64,
    load_adapters: Option<Value>,
    gate: GateOptions,
    layer_norm_eps: f64,
    layers: Vec<u32>,
    knowledge_loss_factor: f64,
    knowledge: String,
    disable_moe: bool,
    no_old_knowledge: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            adapter_down_scale: 16,
            load_adapters: None,
            gate: GateOptions::default(),
            layer_norm_eps: 1e-5,
            layers: vec![7, 11],
            knowledge_loss_factor: 0.5,
            knowledge: "mlm".to_owned(),
            disable_moe: false,
            no_old_knowledge: false,
        }
    }
}

const OPTIONS: &[&str] = &[
    "adapter_down_scale",
    "load_adapters",
    "gate",
    "layer_norm_eps",
    "layers",
    "knowledge_loss_factor",
    "knowledge",
    "disable_moe",
    "no_old_knowledge",
];

/// The parts of a domain adapter as they are called.
const LETTERS: [&str; 4] = ["D", "c", "U", "e"];

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
}

/// A domain adapter and its name.
struct Named {
    name: String,
    domain: Domain,
}

impl Named {
    fn compare(&self, compared: &mut Compared) -> Result<()> {
        let Domain { down, down_shift, up, up_shift } = &self.domain;
        for (letter, leaf) in LETTERS.iter().zip([down, down_shift, up, up_shift]) {
            compared.if_recorded(&format!("grad.{}.{letter}", self.name), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording) -> Result<Self> {
        let (config, rest): (Config, _) = recording.split(OPTIONS)?;
        if let Some(name) = rest.keys().next() {
            return Err(wrong(format!("config.{name}: page 10 does not know it")));
        }
        config.gate.check()?;
        if !["mlm", "template"].contains(&config.knowledge.as_str()) {
            return Err(wrong(format!("config.knowledge: `{}` is neither mlm nor template", config.knowledge)));
        }
        Ok(Self { recording, config })
    }

    fn domain(&self, name: &str) -> Result<Named> {
        let [down, down_shift, up, up_shift] =
            LETTERS.map(|letter| self.recording.leaf(&format!("param.{name}.{letter}")));
        let domain = Domain { down: down?, down_shift: down_shift?, up: up?, up_shift: up_shift? };
        let size = domain.down.size();
        if size[0] != size[1] / self.config.adapter_down_scale.max(1) {
            return Err(wrong(format!("config.adapter_down_scale: param.{name}.D is {size:?}")));
        }
        Ok(Named { name: name.to_owned(), domain })
    }

    /// Those whose names begin so, numbered from 0.
    fn domains(&self, prefix: &str) -> Result<Vec<Named>> {
        let there = |i: &usize| self.recording.find(&format!("param.{prefix}adapter.{i}.D")).is_some();
        (0usize..).take_while(there).map(|i| self.domain(&format!("{prefix}adapter.{i}"))).collect()
    }

    fn frozen(&self, map: &str) -> Result<(Tensor, Tensor)> {
        let of = |part: &str| self.recording.get(&format!("frozen.{map}.{part}"));
        Ok((of("weight")?, of("bias")?))
    }

    fn linear(&self, map: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.frozen(map)?;
        Ok(x.linear(&weight, Some(&bias)))
    }

    fn norm(&self, map: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.frozen(map)?;
        Ok(x.layer_norm(weight.size(), Some(&weight), Some(&bias), self.config.layer_norm_eps, false))
    }

    fn gate(&self, adapters: usize) -> Result<Gate> {
        let options = &self.config.gate;
        let mut maps = Vec::new();
        for index in 0..=options.layers {
            let leaf = |part: &str| self.recording.leaf(&format!("param.gate.{index}.{part}"));
            maps.push((leaf("weight")?, leaf("bias")?));
        }
        let last = maps.last().map(|(weight, _)| weight.size()[0]);
        if last != Some(adapters as i64 + 1) {
            return Err(wrong(format!("the gate has {last:?} results for {adapters} adapters and the frozen part")));
        }
        let hidden = i64::from(options.hidden);
        if maps.iter().rev().skip(1).any(|(weight, _)| weight.size()[0] != hidden) {
            return Err(wrong(format!("config.gate.hidden: the gate's maps are not {hidden} wide")));
        }
        Ok(Gate { maps, activation: options.activation })
    }

    fn module(&self, compared: &mut Compared) -> Result<()> {
        let (z, a) = (self.recording.leaf("input.z")?, self.recording.leaf("input.a")?);
        let adapters = self.domains("")?;
        self.check_count(adapters.len())?;
        let frozen = self.linear("W2", &z)?;
        let results: Vec<_> = adapters.iter().map(|named| named.domain.run(&z)).collect();
        let (gate, mixed) = if self.config.disable_moe {
            let [alone] = results.as_slice() else { return Err(wrong("config.disable_moe: is for one adapter")) };
            (None, alone.shallow_clone())
        } else {
            let (gate, pool) = (self.gate(adapters.len())?, self.config.gate.pool);
            let layout = whole_rows(&z)?;
            let query = if self.config.gate.input == Query::FfnHidden { &z } else { &a };
            let weights = gate.run(&pooled(&layout, query, pool), |_, input| input);
            compared.if_recorded("gate", || Ok(weights.shallow_clone()))?;
            let mixed = mixture(&spread(&layout, &weights, pool), &results, &frozen);
            (Some(gate), mixed)
        };
        let output = self.norm("ln", &(&mixed + &a))?;
        (&output * self.recording.get("input.cotangent")?).sum(output.kind()).backward();
        compared.tensor("output", &output)?;
        compared.if_recorded("mixed", || Ok(mixed.shallow_clone()))?;
        compared.if_recorded("F", || Ok(frozen.shallow_clone()))?;
        compared.if_recorded("base_output", || self.norm("ln", &(&frozen + &a)))?;
        compared.if_recorded("grad.z", || Ok(gradient(&z)))?;
        compared.if_recorded("grad.a", || Ok(gradient(&a)))?;
        for (index, (named, result)) in adapters.iter().zip(&results).enumerate() {
            compared.if_recorded(&format!("K.{index}"), || Ok(result.shallow_clone()))?;
            named.compare(compared)?;
        }
        for (index, (weight, bias)) in gate.iter().flat_map(|gate| &gate.maps).enumerate() {
            compared.if_recorded(&format!("grad.gate.{index}.weight"), || Ok(gradient(weight)))?;
            compared.if_recorded(&format!("grad.gate.{index}.bias"), || Ok(gradient(bias)))?;
        }
        Ok(())
    }

    fn check_count(&self, found: usize) -> Result<()> {
        let asked = match &self.config.load_adapters {
            None => return Ok(()),
            Some(Value::Array(list)) => Some(list.len() as u64),
            Some(number) => number.as_u64(),
        };
        if asked == Some(found as u64) {
            return Ok(());
        }
        Err(wrong(format!("config.load_adapters: {found} adapters are recorded")))
    }

    fn losses(&self, compared: &mut Compared) -> Result<()> {
        let layers: Vec<_> = (0..self.config.layers.len())
            .map(|layer| self.domain(&format!("layer{layer}.adapter.0")))
            .collect::<Result<_>>()?;
        let mut apart_by_layer = Vec::new();
        for (layer, named) in layers.iter().enumerate() {
            let z = self.recording.get(&format!("input.general.z.{layer}"))?;
            let a = self.recording.get(&format!("input.general.a.{layer}"))?;
            let (frozen, result) = (self.linear(&format!("layer{layer}.W2"), &z)?, named.domain.run(&z));
            let replaced = format!("replaced_output.{layer}");
            compared.if_recorded(&replaced, || self.norm(&format!("layer{layer}.ln"), &(&result + &a)))?;
            let one = apart(&frozen, &result).mean(None::<Kind>);
            compared.if_recorded(&format!("L_S.{layer}"), || Ok(one.shallow_clone()))?;
            apart_by_layer.push(one);
        }
        let sampling = Tensor::stack(&apart_by_layer, 0).mean(None::<Kind>);
        let knowledge = self.knowledge(&layers, compared)?;
        let old = if self.config.no_old_knowledge { 0.0 } else { 1.0 };
        let loss = &knowledge * self.config.knowledge_loss_factor + &sampling * old;
        loss.backward();
        compared.if_recorded("L_S", || Ok(sampling))?;
        compared.if_recorded("L_K", || Ok(knowledge))?;
        compared.tensor("loss", &loss)?;
        layers.iter().try_for_each(|named| named.compare(compared))
    }

    /// Cross entropy over all masked tokens of the domain's text, through the last layer alone.
    fn knowledge(&self, layers: &[Named], compared: &mut Compared) -> Result<Tensor> {
        let Some(named) = layers.last() else { return Err(wrong("config.layers: there is none")) };
        let (z, a) = (self.recording.get("input.domain.z")?, self.recording.get("input.domain.a")?);
        let (labels, mask) = (self.recording.get("input.labels")?, self.recording.get("input.mask")?);
        let hidden = self.norm(&format!("layer{}.ln", layers.len() - 1), &(named.domain.run(&z) + &a))?;
        let logits = hidden.linear(&self.recording.get("frozen.head.weight")?, None::<&Tensor>); // [B, T, V]
        let shape = labels.size();
        let each = logits
            .flatten(0, 1)
            .cross_entropy_loss::<Tensor>(&labels.flatten(0, 1), None, tch::Reduction::None, -100, 0.0)
            .reshape(&shape);
        let mask = mask.to_kind(each.kind());
        let masked = &each * &mask;
        compared.if_recorded("L_K_template", || {
            let rows = masked.sum_dim_intlist(1, false, None::<Kind>) / mask.sum_dim_intlist(1, false, None::<Kind>);
            Ok(rows.mean(None::<Kind>))
        })?;
        Ok(masked.sum(None::<Kind>) / mask.sum(None::<Kind>))
    }
}

/// Rows `[batch, width, ..]` without padding.
fn whole_rows(x: &Tensor) -> Result<Layout> {
    let [rows, width, _] = x.size()[..] else { return Err(wrong("input.z has not three axes")) };
    let (rows, width) = (usize::try_from(rows).unwrap_or_default(), usize::try_from(width).unwrap_or_default());
    Ok(Layout::padded(vec![width; rows], width, (0..rows as u64).collect(), Device::Cpu))
}
