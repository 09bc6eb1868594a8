//! Page 59, Poly and MHR: PEFT's two layers `fc2(tanh(fc1 x))`, the paper's encoder and decoder of residual blocks, the
//! variants of the selector, and a training at two rates followed by one on a new task.

mod net;
mod training;

use std::collections::BTreeMap;

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use self::net::Net;
use super::recording::{Recording, bad, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::Options;
use crate::adapter::poly::routing::{Draws, Rule, alike, of_tasks};
use crate::adapter::poly::{Config, Mode};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 59, tolerances: &[], repeat };

/// The options of the case that are not the method's, or that stand for several uses of it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    /// Whether noise was on.
    training: Option<bool>,
    /// The selector's variants, by name: what each has on beside the options.
    variants: Option<BTreeMap<String, Variant>>,
    export_task: Option<i64>,
    /// The linear maps of each selector.
    selectors: Option<Vec<Vec<String>>>,
    clip_grad_norm: f64,
    loss: Option<String>,
    /// What the second part of a training trains.
    mode: Option<Mode>,
}

const AROUND: &[&str] = &["training", "variants", "export_task", "selectors", "clip_grad_norm", "loss", "mode"];

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Variant {
    #[serde(alias = "module_logits_relaxed_bernoulli")]
    use_relaxed_bernoulli: bool,
    #[serde(alias = "module_logits_straight_through")]
    use_straight_through: bool,
    #[serde(alias = "module_logits_l2_norm")]
    use_l2_norm: bool,
    #[serde(alias = "use_shared_skill")]
    poly_use_shared_skill: bool,
    #[serde(alias = "use_average_correction")]
    poly_average_correction: bool,
}

/// A recording with its options.
struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    around: Around,
}

/// How rows are routed.
#[derive(Clone, Copy)]
struct Route {
    rule: Rule,
    /// The relaxed Bernoulli is on and its draws are inputs.
    relaxed: bool,
    /// Every skill alike.
    average: bool,
}

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    let (around, rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
    let config: Config = typed(&rest, "config", &[])?;
    config.validate()?;
    if config.module_logits_dropout > 0.0 && around.training == Some(true) {
        return Err(wrong("config.module_logits_dropout: its draws are no inputs"));
    }
    let case = Case { recording, config, around };
    match recording.kind.as_str() {
        "module" => case.module(compared)?,
        "training" => training::run(&case, train, compared)?,
        other => return Err(wrong(format!("kind: page 59 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

impl Case<'_> {
    /// The options' own way, with what a variant has on beside them.
    fn route(&self, variant: Variant) -> Route {
        let own = Rule::of(&self.config);
        Route {
            rule: Rule {
                straight_through: own.straight_through || variant.use_straight_through,
                l2_norm: own.l2_norm || variant.use_l2_norm,
                shared_skill: own.shared_skill || variant.poly_use_shared_skill,
                average_correction: own.average_correction || variant.poly_average_correction,
            },
            relaxed: (self.config.module_logits_relaxed_bernoulli || variant.use_relaxed_bernoulli)
                && self.around.training != Some(false),
            average: false,
        }
    }

    /// Weights `[b, q, S]` of rows of these tasks at the map `name`; the draws are the inputs under `uniforms`.
    fn weights(
        &self,
        net: &Net<'_>,
        name: &str,
        tasks: &[i64],
        route: Route,
        uniforms: &Uniforms<'_>,
    ) -> Result<Tensor> {
        let (q, s) = (i64::from(self.config.n_splits), i64::from(self.config.n_skills));
        let logits = net.logits(name)?;
        if route.average {
            return Ok(alike(q, s, logits));
        }
        let uniform = if route.relaxed { Some(uniforms(name)?) } else { None };
        Ok(route.rule.weights(&of_tasks(logits, tasks, q), &Draws { uniform, keep: None }))
    }

    fn module(&self, compared: &mut Compared) -> Result<()> {
        let Some(variants) = &self.around.variants else {
            return self.variant(None, self.route(Variant::default()), compared);
        };
        for (name, variant) in variants {
            self.variant(Some(name), self.route(*variant), compared)?;
        }
        if compared.wants("output.mu") && !variants.contains_key("mu") {
            self.variant(Some("mu"), Route { average: true, ..self.route(Variant::default()) }, compared)?;
        }
        self.export(compared)
    }

    /// Output and gradients of one way to route.
    fn variant(&self, name: Option<&str>, route: Route, compared: &mut Compared) -> Result<()> {
        let net = Net::new(self)?;
        let tasks = numbers(&self.recording.get("input.task_ids")?)?;
        let x = wide(&self.recording.get("input.x")?).copy().set_requires_grad(true);
        let uniforms = |map: &str| {
            match name {
                Some(variant) => self.recording.find(&format!("input.uniform.{variant}.{map}")),
                None => None,
            }
            .map_or_else(|| self.recording.get(&format!("input.uniform.{map}")), Ok)
            .map(|uniform| wide(&uniform))
        };
        let mut mixing = BTreeMap::new();
        let output = net.run(&x, &mut |map, skills, x| {
            let weights = self.weights(&net, map, &tasks, route, &uniforms)?;
            mixing.insert(map.to_owned(), weights.shallow_clone());
            Ok(skills.added(x, &weights))
        })?;
        (&output * wide(&self.recording.get("input.cotangent")?)).sum(output.kind()).backward();
        let under = |what: &str| name.map_or_else(|| what.to_owned(), |name| format!("{what}.{name}"));
        compared.tensor(&under("output"), &output)?;
        compared.if_recorded(&format!("{}.input.x", under("grad")), || Ok(gradient(&x)))?;
        for (leaf, tensor) in net.leaves() {
            compared.if_recorded(&format!("{}.{leaf}", under("grad")), || Ok(gradient(&tensor)))?;
        }
        for (map, weights) in mixing {
            compared.if_recorded(&under(&format!("mixing_weights.{map}")), || {
                Ok(weights.expand([tasks.len() as i64, -1, -1], false))
            })?;
        }
        Ok(())
    }

    /// The LoRA of one task.
    fn export(&self, compared: &mut Compared) -> Result<()> {
        let Some(task) = self.around.export_task else { return Ok(()) };
        let _no_grad = tch::no_grad_guard();
        let net = Net::new(self)?;
        let route = Route { relaxed: false, ..self.route(Variant::default()) };
        for (name, skills) in net.adapted() {
            let weights = self.weights(&net, name, &[task], route, &|_| Err(wrong("nothing is drawn")))?;
            let (a, b) = skills.lora(&weights);
            compared.if_recorded(&format!("export.{name}.lora_a"), || Ok(a))?;
            compared.if_recorded(&format!("export.{name}.lora_b"), || Ok(b))?;
        }
        Ok(())
    }
}

/// Draws at a map.
type Uniforms<'a> = dyn Fn(&str) -> Result<Tensor> + 'a;

/// Whole numbers of one axis.
fn numbers(tensor: &Tensor) -> Result<Vec<i64>> {
    Vec::try_from(tensor).map_err(|error| bad("task ids are not a list of whole numbers").caused_by(error))
}

/// The recordings were computed with 64 bits.
fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double)
}
