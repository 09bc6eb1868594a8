//! Page 14, composable sparse fine-tuning: whole trainings of a small classifier, and compositions on it.

use std::collections::BTreeMap;

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Reduction, Tensor};

use super::recording::{Recording, bad, wrong};
use super::training::{Leaves, gradient};
use super::{Compared, Page, Train};
use crate::adapter::Options;
use crate::adapter::lt_sft::gaps::Gaps;
use crate::adapter::lt_sft::sft::{Sft, Weights};
use crate::adapter::lt_sft::ticket::{Maskable, Ticket, Whole};
use crate::adapter::lt_sft::{Config, FtMethod};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 14, tolerances: &["mask"], repeat };

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    match recording.kind.as_str() {
        "training" => Case::new(recording)?.training(train, compared)?,
        "composition" => composition(recording, compared)?,
        other => return Err(wrong(format!("kind: page 14 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

/// `head(tanh(fc2(ln(tanh(fc1 x)))))`.
fn logits(x: &Tensor, weight: &dyn Fn(&str) -> Result<Tensor>) -> Result<Tensor> {
    let linear = |name: &str, x: &Tensor| -> Result<Tensor> {
        Ok(x.linear(&weight(&format!("{name}.weight"))?, Some(&weight(&format!("{name}.bias"))?)))
    };
    let (scale, shift) = (weight("ln.weight")?, weight("ln.bias")?);
    let hidden = linear("fc1", x)?.tanh().layer_norm(scale.size(), Some(&scale), Some(&shift), 1e-5, false);
    linear("head", &linear("fc2", &hidden)?.tanh())
}

/// The options of the case that are not the method's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Around {
    /// Modules, `fc1.*, fc2.*`.
    maskable: String,
    #[serde(rename = "head")]
    _head: Option<String>,
    batch_size: i64,
}

const AROUND: &[&str] = &["maskable", "head", "batch_size"];

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    batch: i64,
    /// Names of maskable tensors in order, then of those that are trained whole.
    maskable: Vec<String>,
    whole: Vec<String>,
    ticket: Ticket,
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording) -> Result<Self> {
        let (around, rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
        let config: Config = typed(&rest, "config", &[])?;
        config.validate()?;
        if config.sparse_ft_method != FtMethod::LotteryTicket {
            return Err(wrong("config.sparse_ft_method: random draws were not recorded"));
        }
        let modules: Vec<_> = around.maskable.split(',').map(|name| name.trim().trim_end_matches('*')).collect();
        let names = recording.under("param.").map(str::to_owned);
        let (maskable, whole): (Vec<_>, Vec<_>) =
            names.partition(|name| modules.iter().any(|module| name.starts_with(module)));
        let first = |name: &String| recording.get(&format!("param.{name}"));
        let ticket = Ticket {
            maskable: maskable.iter().map(|name| Ok(maskable_of(&first(name)?))).collect::<Result<_>>()?,
            whole: whole.iter().map(|name| Ok(whole_of(&first(name)?))).collect::<Result<_>>()?,
        };
        Ok(Self { recording, config, batch: around.batch_size, maskable, whole, ticket })
    }

    /// The weights of now by name.
    fn weight(&self, name: &str) -> Result<Tensor> {
        if let Some(at) = self.maskable.iter().position(|other| other == name) {
            return Ok(self.recording.get(&format!("param.{name}"))? + &self.ticket.maskable[at].change);
        }
        match self.whole.iter().position(|other| other == name) {
            Some(at) => Ok(self.ticket.whole[at].now.shallow_clone()),
            None => self.recording.get(&format!("frozen.{name}")),
        }
    }

    /// Scalars of the whole model.
    fn params(&self) -> u64 {
        let of = |kind: &'static str| {
            self.recording.under(kind).filter_map(move |name| self.recording.find(&format!("{kind}{name}")))
        };
        of("param.").chain(of("frozen.")).map(|tensor| tensor.numel() as u64).sum()
    }

    fn training(&self, train: &dyn Train, compared: &mut Compared) -> Result<()> {
        let counts = self.ticket.maskable.iter().map(|tensor| tensor.change.numel() as u64);
        let k = self.config.entries(counts.sum())? / u64::from(self.config.n_ft_iterations);
        let (mut losses, mut thresholds) = (Vec::new(), Vec::new());
        for iteration in 0..self.config.n_ft_iterations {
            self.phase(false, train, &mut losses)?;
            self.compare(&format!("iter{iteration}.after_full"), compared)?;
            thresholds.push(self.ticket.select(k));
            for (name, tensor) in self.maskable.iter().zip(&self.ticket.maskable) {
                compared.to(&format!("iter{iteration}.mask.{name}"), &tensor.mask, "mask", "mask")?;
            }
            self.phase(true, train, &mut losses)?;
            self.ticket.begin_iteration();
        }
        compared.tensor("losses", &Tensor::stack(&losses, 0))?;
        compared.tensor("threshold", &Tensor::from_slice(&thresholds))?;
        self.compare("final", compared)?;
        for (name, tensor) in self.maskable.iter().zip(&self.ticket.maskable) {
            let Gaps { index_steps, values } = Gaps::of(&tensor.change);
            compared.to(&format!("sft.diff.{name}.index_steps"), &index_steps, "mask", "mask")?;
            compared.tensor(&format!("sft.diff.{name}.values"), &values)?;
        }
        for (name, tensor) in self.whole.iter().zip(&self.ticket.whole) {
            compared.tensor(&format!("sft.abs.{name}"), &tensor.now.detach())?;
        }
        Ok(())
    }

    fn compare(&self, under: &str, compared: &mut Compared) -> Result<()> {
        for name in self.maskable.iter().chain(&self.whole) {
            compared.tensor(&format!("{under}.{name}"), &self.weight(name)?.detach())?;
        }
        Ok(())
    }

    /// One phase, its rows from the first on.
    fn phase(&self, sparse: bool, train: &dyn Train, losses: &mut Vec<Tensor>) -> Result<()> {
        let (spec, more) = self.recording.optimizer_and(&["schedule", "max_grad_norm"])?;
        let falls = match more.get("schedule").and_then(Value::as_str) {
            Some(word) if word.starts_with("linear to 0") => true,
            None | Some("constant") => false,
            Some(other) => return Err(wrong(format!("config.optimizer.schedule: `{other}` is not known"))),
        };
        let most = more.get("max_grad_norm").and_then(Value::as_f64).unwrap_or(0.0);
        let total = self.config.steps(sparse).ok_or_else(|| wrong("config: a phase has no number of steps"))?;
        let (x, labels) = (self.recording.get("input.x")?, self.recording.get("input.labels")?);
        if total as i64 * self.batch > x.size()[0] {
            return Err(bad("input.x has too few rows for a phase"));
        }
        let pull = self.config.pull(sparse, self.params());
        let mut leaves = Leaves::new(self.leaves(), &spec, train);
        for step in 0..total {
            let rows = |tensor: &Tensor| tensor.narrow(0, step as i64 * self.batch, self.batch);
            let output = logits(&rows(&x), &|name| self.weight(name))?;
            let loss = output.cross_entropy_loss(&rows(&labels), None::<&Tensor>, Reduction::Mean, -100, 0.0);
            loss.backward();
            self.ticket.shape_gradients(pull, sparse);
            clip(&self.leaves(), most);
            let share = if falls { (total - step) as f64 / total as f64 } else { 1.0 };
            leaves.update(spec.lr * share);
            losses.push(loss.detach().to_kind(Kind::Double));
        }
        Ok(())
    }

    fn leaves(&self) -> Vec<Tensor> {
        let Ticket { maskable, whole } = &self.ticket;
        let all = maskable.iter().map(|tensor| &tensor.change).chain(whole.iter().map(|tensor| &tensor.now));
        all.map(Tensor::shallow_clone).collect()
    }
}

fn maskable_of(first: &Tensor) -> Maskable {
    let zeros = || first.zeros_like();
    Maskable { change: zeros().set_requires_grad(true), start: Some(zeros()), mask: zeros() }
}

fn whole_of(first: &Tensor) -> Whole {
    Whole { now: first.copy().set_requires_grad(true), start: first.copy(), anchor: first.copy() }
}

/// Scales the gradients down to a total norm of `most`, if that is not 0.
fn clip(leaves: &[Tensor], most: f64) {
    if most == 0.0 {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    let squares: f64 = leaves.iter().map(|leaf| gradient(leaf).square().sum(Kind::Double).double_value(&[])).sum();
    let scale = (most / (squares.sqrt() + 1e-6)).min(1.0);
    for leaf in leaves {
        let _ = leaf.grad().g_mul_scalar_(scale);
    }
}

/// `config` of a composition.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Composition {
    /// `NAME (with_abs=BOOL)`, in order.
    compose: Vec<String>,
    #[serde(rename = "base")]
    _base: Option<String>,
}

fn composition(recording: &Recording, compared: &mut Compared) -> Result<()> {
    let all: Vec<_> = recording.config.keys().map(String::as_str).collect();
    let (config, _): (Composition, _) = recording.split(&all)?;
    let base = || -> Result<Weights> {
        let names = recording.under("frozen.");
        names.map(|name| Ok((name.to_owned(), recording.get(&format!("frozen.{name}"))?))).collect()
    };
    let output = |weights: &Weights| {
        let weight = |name: &str| {
            let found = weights.get(name).map(Tensor::shallow_clone);
            found.ok_or_else(|| bad(format!("frozen.{name} is missing")))
        };
        logits(&recording.get("input.x")?, &weight)
    };
    let parts = parts(recording)?;
    for (name, sft) in &parts {
        for (tensor, gaps) in &sft.diff {
            let shape = recording.get(&format!("frozen.{tensor}"))?.size();
            compared.if_recorded(&format!("dense.{name}.{tensor}"), || gaps.dense(&shape))?;
        }
        if !compared.wants(&format!("base_plus_{name}.output")) {
            continue;
        }
        let mut weights = base()?;
        sft.apply(&mut weights, 1.0, false)?;
        compared.tensor(&format!("base_plus_{name}.output"), &output(&weights)?)?;
        sft.apply(&mut weights, -1.0, false)?;
        for (tensor, weight) in &weights {
            compared.if_recorded(&format!("reverted.{tensor}"), || Ok(weight.shallow_clone()))?;
        }
    }
    let mut weights = base()?;
    for entry in &config.compose {
        let (name, abs) = chosen(entry)?;
        let sft = parts.get(name).ok_or_else(|| bad(format!("input.sft.{name} is missing")))?;
        sft.apply(&mut weights, 1.0, abs)?;
    }
    for (tensor, weight) in &weights {
        compared.tensor(&format!("composed.{tensor}"), weight)?;
    }
    compared.tensor("composed.output", &output(&weights)?)
}

/// `task (with_abs=true)`.
fn chosen(entry: &str) -> Result<(&str, bool)> {
    let unknown = || wrong(format!("config.compose: `{entry}` is not NAME (with_abs=true) or NAME (with_abs=false)"));
    let (name, rest) = entry.split_once(' ').ok_or_else(unknown)?;
    match rest.trim() {
        "(with_abs=true)" => Ok((name, true)),
        "(with_abs=false)" => Ok((name, false)),
        _ => Err(unknown()),
    }
}

/// The differences of the recording by name.
fn parts(recording: &Recording) -> Result<BTreeMap<String, Sft>> {
    const ALL: &str = "input.sft.";
    let mut parts = BTreeMap::<String, Sft>::new();
    for name in recording.under(ALL) {
        let unknown = || bad(format!("{ALL}{name}: neither `diff` nor `abs`"));
        let (part, rest) = name.split_once('.').ok_or_else(unknown)?;
        let sft = parts.entry(part.to_owned()).or_default();
        let get = |name: &str| recording.get(&format!("{ALL}{part}.{name}"));
        if let Some(tensor) = rest.strip_prefix("diff.").and_then(|rest| rest.strip_suffix(".index_steps")) {
            let values = get(&format!("diff.{tensor}.values"))?;
            let index_steps = get(&format!("diff.{tensor}.index_steps"))?;
            sft.diff.insert(tensor.to_owned(), Gaps { index_steps, values });
        } else if let Some(tensor) = rest.strip_prefix("abs.") {
            sft.abs.insert(tensor.to_owned(), get(&format!("abs.{tensor}"))?);
        } else if !(rest.starts_with("diff.") && rest.ends_with(".values")) {
            return Err(unknown());
        }
    }
    Ok(parts)
}
