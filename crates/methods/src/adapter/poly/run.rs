//! Poly at a linear map.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Form, Layout, OpWeights, Site, SiteCx, SiteHook};
use tch::{Kind, Tensor};

use super::routing::{Draws, Rule, Skills, alike, of_tasks};
use super::{A, B, Config, LOGITS, Mode, bin};
use crate::adapter::common::{Dropout, at_sites, linear_delta, whole_site};
use crate::adapter::{Hooks, Parts, SiteMethod};

/// The nearest that drawn numbers come to 0 and 1: the distance between floats there.
const EDGE: f32 = f32::EPSILON;

struct Poly {
    skills: Skills,
    routing: Routing,
}

/// How the rows of a map get weights: all but the skills.
pub(crate) struct Routing {
    /// `[tasks, q S]`; none without a router.
    logits: Option<Tensor>,
    rule: Rule,
    /// The key of the relaxed Bernoulli's draws, when it is on.
    bernoulli: Option<Key>,
    dropout: Dropout,
    /// The task that is merged.
    chosen: Option<u32>,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let routers = routers(config, parts);
    at_sites(parts, |site| {
        let tensor = |name| parts.part(site.id, name).map(Tensor::shallow_clone);
        let skills = Skills { a: tensor(A)?, b: tensor(B)?, scale: config.scaling() };
        Ok(Poly { skills, routing: Routing::at(config, parts, &routers, site)? })
    })
}

impl Routing {
    /// That of a site, whose logits are in `routers`.
    ///
    /// # Errors
    /// `INTERNAL` when they are not there.
    pub(crate) fn at(
        config: &Config,
        parts: &Parts<'_>,
        routers: &BTreeMap<String, &str>,
        site: &Site,
    ) -> Result<Self> {
        let missing = || code::INTERNAL.error(format!("`{}` has no router", site.path));
        let logits = match config.mode {
            Mode::Mu => None,
            Mode::Full | Mode::Z => {
                let name = routers.get(&bin(config.router_granularity, site)).ok_or_else(missing)?;
                Some(parts.get(name)?.shallow_clone())
            }
        };
        let key = parts.key.named("poly_bernoulli").named(&site.path);
        Ok(Self {
            logits,
            rule: Rule::of(config),
            bernoulli: config.module_logits_relaxed_bernoulli.then_some(key),
            dropout: Dropout::new(config.module_logits_dropout, parts.key, "poly_dropout", &site.path),
            chosen: config.chosen(),
        })
    }
}

/// Name of the logits of each bin.
pub(crate) fn routers<'a>(config: &Config, parts: &Parts<'a>) -> BTreeMap<String, &'a str> {
    let own = parts.plan.tensors.iter().filter(|tensor| tensor.part == LOGITS);
    own.map(|tensor| (bin(config.router_granularity, parts.site(tensor.site)), tensor.name.as_str())).collect()
}

/// The weights of a task at a site, for its LoRA.
pub(super) fn weights_of(config: &Config, parts: &Parts<'_>, site: &Site, task: u32) -> Result<Tensor> {
    let (q, s) = (i64::from(config.n_splits), i64::from(config.n_skills));
    let own = bin(config.router_granularity, site);
    match routers(config, parts).get(&own) {
        Some(name) => {
            let logits = of_tasks(parts.get(name)?, &[i64::from(task)], q);
            Ok(Rule::of(config).weights(&logits, &Draws::default()))
        }
        None => Ok(alike(q, s, parts.part(site.id, A)?)),
    }
}

impl Routing {
    /// Weights of the rows, `[b, q, S]`, or `[1, q, S]` where all rows have the same.
    fn weights(&self, cx: &SiteCx<'_>, skills: &Skills) -> Tensor {
        let (q, s) = (skills.a.size()[0], skills.a.size()[1]);
        let Some(logits) = &self.logits else { return alike(q, s, &skills.a) };
        let draws = self.draws(cx, q, s);
        let one = draws.uniform.is_none() && draws.keep.is_none();
        let tasks = tasks(cx.layout, self.chosen.unwrap_or_default());
        let rows = match tasks.first() {
            Some(first) if one && tasks.iter().all(|task| task == first) => &tasks[..1],
            _ => &tasks,
        };
        self.rule.weights(&of_tasks(logits, rows, q), &draws)
    }

    fn draws(&self, cx: &SiteCx<'_>, q: i64, s: i64) -> Draws {
        let (each, samples, device) = ((q * s) as usize, cx.layout.samples(), cx.layout.device());
        let rows = |list: Vec<Tensor>| Tensor::stack(&list, 0).reshape([-1, q, s]).to_device(device);
        let uniform = self.bernoulli.filter(|_| cx.train).map(|key| {
            let key = key.with(cx.step).with(u64::from(cx.pass));
            let row = |sample: &u64| {
                let mut rng = key.with(*sample).rng();
                let values: Vec<f32> = (0..each).map(|_| rng.uniform().clamp(EDGE, 1.0 - EDGE)).collect();
                Tensor::from_slice(&values)
            };
            rows(samples.iter().map(row).collect())
        });
        let keep = self.dropout.is_on(cx).then(|| {
            let key = self.dropout.now(cx);
            rows(samples.iter().map(|sample| whole_site(each, self.dropout.p, key.with(*sample), device)).collect())
        });
        Draws { uniform, keep }
    }

    /// What is added for the inputs `x` `[.., in]`: `[.., out]`, float32.
    pub(crate) fn added(&self, cx: &SiteCx<'_>, skills: &Skills, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        let weights = self.weights(cx, skills);
        if weights.size()[0] == 1 {
            let (a, b) = skills.lora(&weights);
            return x.matmul(&a).matmul(&b) * skills.scale;
        }
        match cx.layout.form() {
            Form::Padded { .. } => rows_alike(skills, &x, &weights),
            Form::Packed { .. } => packed(skills, cx.layout, &x, &weights),
        }
    }

    /// What is added to the weight `[out, in]` for the chosen task, or the only one; without a router of the average skill.
    /// `None` when there are several tasks and none is chosen.
    pub(crate) fn delta(&self, skills: &Skills) -> Option<Tensor> {
        let (q, s) = (skills.a.size()[0], skills.a.size()[1]);
        let weights = match &self.logits {
            None => alike(q, s, &skills.a),
            Some(logits) => {
                self.rule.weights(&of_tasks(logits, &[i64::from(self.chosen?)], q), &Draws::default())
            }
        };
        Some(skills.delta(&weights))
    }
}

/// The task of every row: `usual` where rows name none. Training refuses such rows when there are several tasks.
fn tasks(layout: &Layout, usual: u32) -> Vec<i64> {
    match layout.tasks() {
        [] => vec![i64::from(usual); layout.sequences()],
        named => named.iter().map(|task| i64::from(*task)).collect(),
    }
}

/// Rows of one length: `x` `[b, .., in]`.
fn rows_alike(skills: &Skills, x: &Tensor, weights: &Tensor) -> Tensor {
    let mut size = x.size();
    let (rows, input) = (size[0], size.last().copied().unwrap_or(1));
    let added = skills.added(&x.reshape([rows, -1, input]), weights);
    if let Some(last) = size.last_mut() {
        *last = added.size()[2];
    }
    added.reshape(size)
}

/// Rows end to end: `x` `[tokens, in]`.
fn packed(skills: &Skills, layout: &Layout, x: &Tensor, weights: &Tensor) -> Tensor {
    let (a, b) = skills.mixed(weights);
    let row = |sequence: usize| {
        let tokens = layout.token_range(sequence);
        let own = x.narrow(0, tokens.start as i64, tokens.len() as i64);
        own.matmul(&a.get(sequence as i64)).matmul(&b.get(sequence as i64))
    };
    let rows: Vec<_> = (0..layout.sequences()).map(row).collect();
    Tensor::cat(&rows, 0) * skills.scale
}

impl SiteHook for Poly {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let added = self.routing.added(cx, &self.skills, &x[0]);
        y.iter().map(|y| (y + &added).to_kind(y.kind())).collect()
    }
}

impl SiteMethod for Poly {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        Some(linear_delta(site, base, &self.routing.delta(&self.skills)?))
    }

    fn adds(&self) -> bool {
        true
    }
}
