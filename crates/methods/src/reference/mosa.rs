//! Page 13, MoSA: masks of given scores, and trainings of a few blocks of a vision transformer with given draws.

use std::collections::BTreeSet;

use pleach_base::Result;
use pleach_spec::job::OptimizerSpec;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::recording::{Recording, wrong};
use super::training::gradient;
use super::{Compared, Page, Train, Update};
use crate::adapter::symmetric_kl;
use crate::adapter::visual_adapter::run::{Branch, Pair};
use crate::adapter::visual_adapter::{self, Style};
use crate::options::typed;
use crate::strategy::mosa::split::{bands, merged, owned, within};
use crate::strategy::mosa::{Config, MaskMode, Shared};

pub(super) const PAGE: Page = Page { number: 13, tolerances: &["mask"], repeat };

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    match recording.kind.as_str() {
        "selection" => masks(recording, compared)?,
        "training" => training(recording, train, compared)?,
        other => return Err(wrong(format!("kind: page 13 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

/// What masks were recorded for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Masks {
    expert_num: OneOr<i64>,
    mask_mode: OneOr<MaskMode>,
    bias_shared: bool,
}

/// One or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOr<T> {
    One(T),
    List(Vec<T>),
}

impl<T> OneOr<T> {
    fn list(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::List(list) => list,
        }
    }
}

fn word(mode: MaskMode) -> &'static str {
    match mode {
        MaskMode::All => "all",
        MaskMode::Row => "row",
        MaskMode::Column => "column",
    }
}

fn masks(recording: &Recording, compared: &mut Compared) -> Result<()> {
    let (asked, rest): (Masks, _) = recording.split(&["expert_num", "mask_mode", "bias_shared"])?;
    if let Some(name) = rest.keys().next() {
        return Err(wrong(format!("config.{name}: masks do not depend on it")));
    }
    let each = |bands: &Tensor, n: i64| {
        let masks: Vec<_> = (0..n).map(|i| owned(bands, i as usize)).collect();
        Tensor::stack(&masks, 0)
    };
    for name in recording.under("input.score") {
        let score = recording.get(&format!("input.score{name}"))?;
        for n in asked.expert_num.list() {
            for mode in asked.mask_mode.list() {
                let found = each(&bands(&score, *n, *mode), *n);
                compared.to(&format!("mask{name}.n{n}.{}", word(*mode)), &found, "mask", "mask")?;
            }
            let bias = format!("bias_mask{name}.n{n}");
            if !compared.wants(&bias) {
                continue;
            }
            if !asked.bias_shared {
                return Err(wrong("config.bias_shared: the scores of biases are not recorded"));
            }
            let found = Tensor::ones([*n, score.size()[0]], (Kind::Uint8, tch::Device::Cpu));
            compared.to(&bias, &found, "mask", "mask")?;
        }
    }
    Ok(())
}

/// The options of a training that are not the method's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Around {
    num_heads: i64,
    adapter: Wrapped,
}

/// The wrapped adapter.
#[derive(Deserialize)]
struct Wrapped {
    method: Style,
    #[serde(flatten)]
    options: Map<String, Value>,
}

/// What is updated by itself: a tensor, or an expert's.
struct Leaf {
    name: String,
    tensor: Tensor,
    /// Who owns its entries, and which expert it is; nothing for what is not split.
    mask: Option<(Tensor, usize)>,
    start: Tensor,
    update: Box<dyn Update>,
}

/// One projection: its leaves, weight and bias, once or once an expert.
struct Projection {
    leaves: Vec<[usize; 2]>,
    bands: Option<Tensor>,
}

/// One adapter of a block.
struct Place {
    norm: Option<[usize; 2]>,
    down: Projection,
    up: Projection,
}

/// Which experts a pass runs through.
#[derive(Clone, Copy)]
enum Through<'a> {
    /// Those drawn: for each block a row of numbers, two a place.
    Drawn(&'a [Vec<i64>]),
    Merged,
}

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    adapter: visual_adapter::Config,
    heads: i64,
    spec: OptimizerSpec,
    leaves: Vec<Leaf>,
    head: [usize; 2],
    /// Places of each block.
    blocks: Vec<Vec<Place>>,
}

fn training(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let mut case = Case::new(recording, train)?;
    let (x, labels) = (recording.get("input.x")?, recording.get("input.labels")?);
    let mut losses = Vec::new();
    for step in 0..x.size()[0] {
        losses.push(case.step(step, &x.get(step), &labels.get(step), compared)?);
    }
    compared.tensor("losses", &Tensor::stack(&losses, 0))?;
    let _no_grad = tch::no_grad_guard();
    for leaf in &case.leaves {
        compared.tensor(&format!("trained.{}", leaf.name), &leaf.tensor.detach())?;
    }
    for (block, places) in case.blocks.iter().enumerate() {
        for (place, slot) in places.iter().zip(slots(case.adapter.style)) {
            for (projection, name) in [(&place.down, "adapter_down"), (&place.up, "adapter_up")] {
                if projection.bands.is_some() {
                    let (weight, bias) = case.merged(projection);
                    let name = format!("merged.layer.{block}.{name}{slot}");
                    compared.tensor(&format!("{name}.weight"), &weight)?;
                    compared.tensor(&format!("{name}.bias"), &bias)?;
                }
            }
        }
    }
    compared.tensor("eval_logits", &case.logits(&recording.get("input.eval_x")?, Through::Merged)?)
}

/// What the names of a style's projections end in, in the order of its places.
fn slots(style: Style) -> &'static [&'static str] {
    match style {
        Style::Houlsby => &["_attn", "_ffn"],
        Style::Adaptformer | Style::Pfeiffer => &[""],
    }
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording, train: &dyn Train) -> Result<Self> {
        let (around, rest): (Around, _) = recording.split(&["num_heads", "adapter"])?;
        let config: Config = typed(&rest, "config", &[])?;
        config.check()?;
        let mut adapter: visual_adapter::Config = typed(&around.adapter.options, "config.adapter", &[])?;
        adapter.style = around.adapter.method;
        if config.deep_reg {
            return Err(wrong("config.deep_reg: this build does not have it"));
        }
        if adapter.dropout != 0.0 {
            return Err(wrong("config.adapter.dropout: its draws are not recorded"));
        }
        if !config.bias_shared {
            return Err(wrong("config.bias_shared: the masks of biases are not recorded"));
        }
        let mut leaves = Leaves { recording, spec: recording.optimizer()?, train, list: Vec::new() };
        let (heads, experts) = (around.num_heads, config.expert_num as usize);
        let count = (0..).take_while(|i| recording.find(&format!("frozen.layer.{i}.ffn.fc1.weight")).is_some()).count();
        let mut blocks = Vec::new();
        for block in 0..count {
            let mut places = Vec::new();
            for slot in slots(adapter.style) {
                let norm = format!("layer.{block}.adapter_norm");
                let norm = if adapter.style == Style::Houlsby { None } else { Some(leaves.pair(&norm)?) };
                let name = |half: &str| format!("layer.{block}.{half}{slot}");
                let mut half = |half: &str, shared: bool| leaves.projection(&name(half), shared, experts);
                let down = half("adapter_down", config.share == Shared::Down)?;
                places.push(Place { norm, down, up: half("adapter_up", config.share == Shared::Up)? });
            }
            blocks.push(places);
        }
        let head = leaves.pair("head")?;
        let Leaves { spec, list, .. } = leaves;
        Ok(Self { recording, config, adapter, heads, spec, leaves: list, head, blocks })
    }

    fn pair(&self, [weight, bias]: [usize; 2]) -> Pair {
        (self.leaves[weight].tensor.shallow_clone(), self.leaves[bias].tensor.shallow_clone())
    }

    fn merged(&self, projection: &Projection) -> Pair {
        let all = |which: usize, bands: Option<&Tensor>| {
            let values: Vec<_> =
                projection.leaves.iter().map(|pair| self.leaves[pair[which]].tensor.shallow_clone()).collect();
            merged(&values, bands, self.config.merge)
        };
        (all(0, projection.bands.as_ref()), all(1, None))
    }

    /// The number of the expert that `drawn` means, where there are several.
    fn expert(projection: &Projection, drawn: i64) -> usize {
        if projection.bands.is_some() { usize::try_from(drawn).unwrap_or(usize::MAX) } else { 0 }
    }

    fn branch(&self, place: &Place, drawn: Option<[i64; 2]>) -> Result<Branch> {
        let one = |projection: &Projection, which: usize| match drawn {
            Some(drawn) => {
                let pair = projection.leaves.get(Self::expert(projection, drawn[which]));
                pair.map(|pair| self.pair(*pair)).ok_or_else(|| wrong("input.draws: there is no such expert"))
            }
            None => Ok(self.merged(projection)),
        };
        Ok(Branch { norm: place.norm.map(|norm| self.pair(norm)), down: one(&place.down, 0)?, up: one(&place.up, 1)? })
    }

    fn logits(&self, x: &Tensor, through: Through<'_>) -> Result<Tensor> {
        let mut hidden = x.shallow_clone();
        for block in 0..self.blocks.len() {
            hidden = self.block(block, &hidden, through)?;
        }
        let hidden = self.norm("norm", &hidden)?;
        let (weight, bias) = self.pair(self.head);
        Ok(hidden.select(1, 0).linear(&weight, Some(&bias)))
    }

    fn block(&self, block: usize, x: &Tensor, through: Through<'_>) -> Result<Tensor> {
        let name = |of: &str| format!("layer.{block}.{of}");
        let attention = self.attention(&name("attn"), &self.norm(&name("attention_norm"), x)?)?;
        let places = &self.blocks[block];
        let style = self.adapter.style;
        let join = |place: usize, output: &Tensor, residual: &Tensor| -> Result<Tensor> {
            let drawn = match through {
                Through::Drawn(rows) => {
                    let pair = rows.get(block).and_then(|row| row.get(2 * place..2 * place + 2));
                    let pair = pair.ok_or_else(|| wrong("input.draws: two numbers a place and block are needed"))?;
                    Some([pair[0], pair[1]])
                }
                Through::Merged => None,
            };
            let branch = self.branch(&places[place], drawn)?;
            let sum = |output: &Tensor| output + residual;
            Ok(style.join(&branch, self.adapter.scalar, [output, residual], None, sum))
        };
        let behind = style == Style::Houlsby;
        let hidden = if behind { join(0, &attention, x)? } else { &attention + x };
        let inner = self.linear(&name("ffn.fc1"), &self.norm(&name("ffn_norm"), &hidden)?)?.gelu("none");
        join(usize::from(behind), &self.linear(&name("ffn.fc2"), &inner)?, &hidden)
    }

    fn frozen(&self, map: &str) -> Result<Pair> {
        Ok((self.recording.get(&format!("frozen.{map}.weight"))?, self.recording.get(&format!("frozen.{map}.bias"))?))
    }

    fn linear(&self, map: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.frozen(map)?;
        Ok(x.linear(&weight, Some(&bias)))
    }

    fn norm(&self, map: &str, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.frozen(map)?;
        Ok(x.layer_norm(weight.size(), Some(&weight), Some(&bias), 1e-6, true))
    }

    fn attention(&self, at: &str, x: &Tensor) -> Result<Tensor> {
        let [batch, tokens, width] = x.size()[..] else { return Err(wrong("input.x has not four axes")) };
        let dim = width / self.heads;
        let split = |map: &str| -> Result<Tensor> {
            let y = self.linear(&format!("{at}.{map}"), x)?;
            Ok(y.reshape([batch, tokens, self.heads, dim]).transpose(1, 2))
        };
        let (q, k, v) = (split("query")?, split("key")?, split("value")?);
        let weights = (q.matmul(&k.transpose(-2, -1)) / (dim as f64).sqrt()).softmax(-1, None::<Kind>);
        let mixed = weights.matmul(&v).transpose(1, 2).reshape([batch, tokens, width]);
        self.linear(&format!("{at}.out"), &mixed)
    }

    /// Forward, backward and update; gives the loss before the update.
    fn step(&mut self, step: i64, x: &Tensor, labels: &Tensor, compared: &mut Compared) -> Result<Tensor> {
        let draws = self.recording.get("input.draws")?.get(step); // [passes, blocks, 2 a place]
        let rows = |pass: i64| -> Vec<Vec<i64>> {
            let blocks = draws.get(pass);
            (0..blocks.size()[0]).map(|i| Vec::<i64>::try_from(blocks.get(i)).unwrap_or_default()).collect()
        };
        let passes = if self.config.additional_forward { 2 } else { 1 };
        if draws.size()[0] < passes {
            return Err(wrong("input.draws: there are fewer passes than `additional_forward` says"));
        }
        let drawn: Vec<_> = (0..passes).map(rows).collect();
        let first = self.logits(x, Through::Drawn(&drawn[0]))?;
        let mut loss = cross_entropy(&first, labels);
        if let Some(rows) = drawn.get(1) {
            let second = self.logits(x, Through::Drawn(rows))?;
            loss = loss.g_add(&(cross_entropy(&second, labels) * self.config.add_weight));
            let apart = symmetric_kl(&first, &second).mean(None::<Kind>);
            loss = loss.g_add(&(apart * self.config.reg_weight));
            if step == 0 {
                compared.if_recorded("step0.logits_additional", || Ok(second.shallow_clone()))?;
            }
        }
        loss.backward();
        if step == 0 {
            compared.if_recorded("step0.logits", || Ok(first.shallow_clone()))?;
        }
        let touched = self.touched(&drawn);
        self.update(step, &touched, compared)?;
        Ok(loss.detach())
    }

    /// The leaves that the passes of a step ran through.
    fn touched(&self, drawn: &[Vec<Vec<i64>>]) -> BTreeSet<usize> {
        let mut touched = BTreeSet::from(self.head);
        for rows in drawn {
            for (places, row) in self.blocks.iter().zip(rows) {
                for (place, pair) in places.iter().zip(row.chunks(2)) {
                    touched.extend(place.norm.iter().flatten());
                    for (projection, drawn) in [&place.down, &place.up].into_iter().zip(pair) {
                        touched.extend(projection.leaves[Self::expert(projection, *drawn)]);
                    }
                }
            }
        }
        touched
    }

    /// Masks gradients and updates what was touched; the rest has no gradient and does not move.
    fn update(&mut self, step: i64, touched: &BTreeSet<usize>, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for index in touched {
            let leaf = &mut self.leaves[*index];
            let mut grad = gradient(&leaf.tensor).copy();
            if let Some((bands, expert)) = &leaf.mask {
                grad = within(&grad, &grad.zeros_like(), bands, *expert);
            }
            if step == 0 {
                compared.tensor(&format!("step0.grad.{}", leaf.name), &grad)?;
            }
            let mut flat = leaf.tensor.detach().copy().flatten(0, -1);
            leaf.update.step(&mut flat, &grad.flatten(0, -1), self.spec.lr);
            let mut value = flat.reshape(leaf.tensor.size());
            if let Some((bands, expert)) = &leaf.mask {
                value = within(&value, &leaf.start, bands, *expert);
            }
            leaf.tensor.shallow_clone().copy_(&value);
        }
        for leaf in &mut self.leaves {
            leaf.tensor.zero_grad();
        }
        Ok(())
    }
}

fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::Mean, -100, 0.0)
}

/// Leaves as they are made.
struct Leaves<'a> {
    recording: &'a Recording,
    spec: OptimizerSpec,
    train: &'a dyn Train,
    list: Vec<Leaf>,
}

impl Leaves<'_> {
    fn add(&mut self, from: &str, name: String, mask: Option<(Tensor, usize)>) -> Result<usize> {
        let tensor = self.recording.leaf(&format!("param.{from}"))?;
        let update = self.train.optimizer(&self.spec, tensor.numel() as i64);
        self.list.push(Leaf { name, start: tensor.detach().copy(), tensor, mask, update });
        Ok(self.list.len() - 1)
    }

    /// Weight and bias.
    fn pair(&mut self, name: &str) -> Result<[usize; 2]> {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        Ok([self.add(&weight, weight.clone(), None)?, self.add(&bias, bias.clone(), None)?])
    }

    fn projection(&mut self, name: &str, shared: bool, experts: usize) -> Result<Projection> {
        if shared {
            return Ok(Projection { leaves: vec![self.pair(name)?], bands: None });
        }
        let masks = self.recording.get(&format!("input.mask.{name}"))?; // [N, out, in]
        if masks.size()[0] != experts as i64 {
            return Err(wrong(format!("input.mask.{name}: there are not as many masks as experts")));
        }
        let bands = masks.to_kind(Kind::Int64).argmax(0, false);
        let mut leaves = Vec::new();
        for expert in 0..experts {
            let at = |part: &str| (format!("{name}.{part}"), format!("{name}.{expert}.{part}"));
            let ((weight, own), (bias, own_bias)) = (at("weight"), at("bias"));
            let mask = Some((bands.shallow_clone(), expert));
            leaves.push([self.add(&weight, own, mask)?, self.add(&bias, own_bias, None)?]);
        }
        Ok(Projection { leaves, bands: Some(bands) })
    }
}
