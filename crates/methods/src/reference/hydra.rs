//! Page 47, Hydra: a feed-forward part, an attention, or a linear map with its norm behind it; and trainings of them.

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::recording::{Recording, wrong};
use super::training::{Leaves, gradient};
use super::{Compared, Page, Train};
use crate::adapter::Options;
use crate::adapter::common::Activation;
use crate::adapter::hydra::run::{Branch, Branches};
use crate::adapter::hydra::{Config, Scale};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 47, tolerances: &["merge_abs"], repeat };

/// The options of the case that are not the method's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    num_heads: Option<i64>,
    activation: Option<String>,
    layer_norm_eps: Option<f64>,
}

const AROUND: &[&str] = &["num_heads", "activation", "layer_norm_eps"];

/// The leaves of one branch, by the letter of the recording.
struct Leaf {
    name: String,
    tensor: Tensor,
}

struct Case<'a> {
    recording: &'a Recording,
    around: Around,
    /// Name of the adapted map.
    site: String,
    branches: Branches,
    leaves: Vec<Leaf>,
}

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let case = Case::new(recording)?;
    match recording.kind.as_str() {
        "module" => case.module(compared)?,
        "training" => case.training(train, compared)?,
        other => return Err(wrong(format!("kind: page 47 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording) -> Result<Self> {
        let (around, rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
        let config: Config = typed(&rest, "config", &[])?;
        config.validate()?;
        let site = recording
            .under("param.")
            .find_map(|name| name.split_once(".par.").or_else(|| name.split_once(".seq.")).map(|(site, _)| site))
            .ok_or_else(|| wrong("there is no branch among the parameters"))?
            .to_owned();
        let mut leaves = Vec::new();
        let mut branch = |which: &str| branch(recording, &config, &format!("{site}.{which}"), &mut leaves);
        let branches = Branches { par: branch("par")?, seq: branch("seq")? };
        Ok(Self { recording, around, site, branches, leaves })
    }

    fn frozen(&self, map: &str) -> Result<(Tensor, Option<Tensor>)> {
        let bias = self.recording.find(&format!("frozen.{map}.bias"));
        Ok((self.recording.get(&format!("frozen.{map}.weight"))?, bias))
    }

    fn module(&self, compared: &mut Compared) -> Result<()> {
        let x = self.recording.leaf("input.x")?;
        let (inner, residual) = (self.before(&x)?, self.recording.find("input.residual"));
        let (weight, bias) = self.frozen(&self.site)?;
        let y0 = inner.linear(&weight, bias.as_ref());
        let y = self.branches.around(&inner, &y0, [None, None]);
        let output = self.behind(&y, residual.as_ref())?;
        (&output * self.recording.get("input.cotangent")?).sum(output.kind()).backward();
        compared.tensor("output", &output)?;
        compared.if_recorded("y0", || Ok(y0.shallow_clone()))?;
        compared.if_recorded("y", || Ok(y.shallow_clone()))?;
        compared.if_recorded("grad.input", || Ok(gradient(&x)))?;
        for Leaf { name, tensor } in &self.leaves {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(tensor)))?;
        }
        self.merged(&inner, residual.as_ref(), compared)
    }

    fn merged(&self, inner: &Tensor, residual: Option<&Tensor>, compared: &mut Compared) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (weight, bias) = self.frozen(&self.site)?;
        let (weight, bias) = self.branches.merged(&weight, bias.as_ref());
        let name = |what: &str| format!("merged.{}.{what}", self.site);
        if compared.wants(&name("weight")) {
            compared.to(&name("weight"), &weight, "merge_abs", "rel")?;
        }
        if let Some(bias) = bias.as_ref().filter(|_| compared.wants(&name("bias"))) {
            compared.to(&name("bias"), bias, "merge_abs", "rel")?;
        }
        if compared.wants("merged_output") {
            let output = self.behind(&inner.linear(&weight, bias.as_ref()), residual)?;
            compared.to("merged_output", &output, "merge_abs", "rel")?;
        }
        Ok(())
    }

    /// From the block's input to that of the adapted map.
    fn before(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(heads) = self.around.num_heads {
            return self.attention(x, heads);
        }
        let Some(activation) = &self.around.activation else { return Ok(x.shallow_clone()) };
        let (weight, bias) = self.frozen("fc1")?;
        let word = activation.split_whitespace().next().unwrap_or_default();
        Ok(Activation::parse("activation", word)?.run(&x.linear(&weight, bias.as_ref())))
    }

    /// Self-attention up to its output projection; rows of `qkv` are q, k, v, and head-major inside each.
    fn attention(&self, x: &Tensor, heads: i64) -> Result<Tensor> {
        let (weight, bias) = self.frozen("qkv")?;
        let [batch, tokens, width] = x.size()[..] else { return Err(wrong("input.x has not three axes")) };
        let qkv = x.linear(&weight, bias.as_ref()).reshape([batch, tokens, 3, heads, width / heads]);
        let qkv = qkv.permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.get(0), qkv.get(1), qkv.get(2));
        let scores = q.matmul(&k.transpose(-2, -1)) / ((width / heads) as f64).sqrt();
        let mixed = scores.softmax(-1, None::<Kind>).matmul(&v);
        Ok(mixed.transpose(1, 2).reshape([batch, tokens, width]))
    }

    /// From the adapted map's result to the block's output.
    fn behind(&self, y: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let Some(eps) = self.around.layer_norm_eps else { return Ok(y.shallow_clone()) };
        let sum = residual.map_or_else(|| y.shallow_clone(), |residual| y + residual);
        let (weight, bias) = self.frozen("ln")?;
        let width = sum.size().last().copied().unwrap_or(1);
        Ok(sum.layer_norm([width], Some(&weight), bias.as_ref(), eps, false))
    }

    /// Mean squared error over recorded batches; the losses are those before each update.
    fn training(&self, train: &dyn Train, compared: &mut Compared) -> Result<()> {
        let (x, target) = (self.recording.get("input.batches.x")?, self.recording.get("input.batches.target")?);
        let spec = self.recording.optimizer()?;
        let leaves = self.leaves.iter().map(|leaf| leaf.tensor.shallow_clone()).collect();
        let mut leaves = Leaves::new(leaves, &spec, train);
        let (weight, bias) = self.frozen(&self.site)?;
        let mut losses = Vec::new();
        for step in 0..x.size()[0] {
            let x = x.get(step);
            let y = self.branches.around(&x, &x.linear(&weight, bias.as_ref()), [None, None]);
            let loss = y.mse_loss(&target.get(step), tch::Reduction::Mean);
            losses.push(leaves.step(&loss, spec.lr)?);
        }
        compared.tensor("losses", &Tensor::stack(&losses, 0))?;
        for Leaf { name, tensor } in &self.leaves {
            compared.tensor(&format!("trained.{name}"), &tensor.detach())?;
        }
        Ok(())
    }
}

fn branch(recording: &Recording, config: &Config, at: &str, leaves: &mut Vec<Leaf>) -> Result<Option<Branch>> {
    let names: Vec<_> = recording.under("param.").filter(|name| name.starts_with(at)).map(str::to_owned).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut leaf = |letter: &str| -> Result<Option<Tensor>> {
        let name = format!("{at}.{letter}");
        if !names.contains(&name) {
            return Ok(None);
        }
        let tensor = recording.leaf(&format!("param.{name}"))?;
        leaves.push(Leaf { name, tensor: tensor.shallow_clone() });
        Ok(Some(tensor))
    };
    let missing = |letter: &str| wrong(format!("param.{at}.{letter} is missing"));
    let a = leaf("A")?.ok_or_else(|| missing("A"))?;
    let b = leaf("B")?.ok_or_else(|| missing("B"))?;
    let scale = match config.scale {
        Scale::Fixed(scale) => Tensor::from(scale).to_kind(a.kind()),
        Scale::Trained(_) => leaf("scale")?.ok_or_else(|| missing("scale"))?,
    };
    Ok(Some(Branch { a_bias: leaf("a")?, b_bias: leaf("b")?, a, b, scale }))
}
