//! Hooks of several adapters at one site, as one.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Backbone, BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::{Child, configs, owner};
use crate::adapter::bottleneck::{Before, Bottleneck, Io, State, Sublayer, around};
use crate::adapter::common::sequence_mean;
use crate::adapter::{Hooks, Parts, SiteMethod, StepInfo};
use crate::plan::PlannedTensor;

/// How the results of adapters at one site become one.
pub(crate) enum Join {
    /// Each gets what the one before it gave.
    Stack,
    /// What each changes is added, each perhaps through a gate: weight `[1, width]` and bias `[1]`.
    Sum(Vec<Option<(Tensor, Tensor)>>),
    /// The results are added with these weights, in the order of the adapters.
    Average(Vec<f64>),
    /// What each changes is chosen by attention.
    Fuse(Fuser),
}

/// Attention over what adapters change.
pub(crate) struct Fuser {
    pub(crate) query: Option<(Tensor, Tensor)>,
    pub(crate) key: Option<(Tensor, Tensor)>,
    pub(crate) value: Option<Tensor>,
    pub(crate) query_early: bool,
    pub(crate) residual_before: bool,
    pub(crate) dropout: crate::adapter::common::Dropout,
}

impl Fuser {
    /// `query` and `residual` `[.., d]`, `changes` each `[.., d]`, to `[.., d]`.
    fn run(&self, cx: &SiteCx<'_>, query: &Tensor, changes: &[Tensor], residual: &Tensor) -> Tensor {
        let changes = Tensor::stack(changes, -2); // [.., n, d]
        let values = if self.residual_before { changes + residual.unsqueeze(-2) } else { changes };
        let affine = |x: &Tensor, map: &Option<(Tensor, Tensor)>| match map {
            Some((weight, bias)) => x.linear(weight, Some(bias)),
            None => x.shallow_clone(),
        };
        let (query, keys) = (affine(query, &self.query), affine(&values, &self.key));
        let values = match &self.value {
            Some(weight) => values.linear(weight, None::<&Tensor>),
            None => values,
        };
        let scores = keys.matmul(&query.unsqueeze(-1)).squeeze_dim(-1); // [.., n]
        let shares = self.dropout.apply(cx, &scores).softmax(-1, Kind::Float);
        let mixed = shares.unsqueeze(-2).matmul(&values).squeeze_dim(-2); // [.., d]
        if self.residual_before { mixed } else { mixed + residual }
    }
}

/// An adapter's number in the composition and its hook.
type Member = (usize, Box<dyn SiteMethod>);

/// The adapters that act at a site, each with its number in the composition.
struct Members {
    hooks: Vec<Member>,
    join: Join,
}

impl Members {
    /// The result of one adapter whose base gives `y`.
    fn result(
        hook: &dyn SiteMethod,
        cx: &SiteCx<'_>,
        x: &[Tensor],
        y: &[Tensor],
        base: Option<&BaseOp<'_>>,
    ) -> Vec<Tensor> {
        let clones = |list: &[Tensor]| list.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        match base {
            Some(base) if !hook.shares_base() => hook.around(cx, clones(x), base),
            _ => hook.after(cx, x, clones(y)),
        }
    }

    /// Joins the results of all adapters. The first output alone is joined: sites have one.
    fn joined(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>, base: Option<&BaseOp<'_>>) -> Vec<Tensor> {
        let kind = y[0].kind();
        let plain = y[0].to_kind(Kind::Float);
        let results = self.hooks.iter().map(|(child, hook)| {
            let result = Self::result(hook.as_ref(), cx, x, &y, base);
            (*child, result[0].to_kind(Kind::Float))
        });
        let joined = match &self.join {
            Join::Stack => {
                let follow = |y: Vec<Tensor>, (_, hook): &Member| hook.after(cx, x, y);
                return self.hooks.iter().filter(|(_, hook)| hook.shares_base()).fold(y, follow);
            }
            Join::Sum(gates) => results.fold(plain.shallow_clone(), |sum, (child, result)| {
                sum + gated(cx, gates[child].as_ref(), &x[0], result - &plain)
            }),
            Join::Average(weights) => {
                let absent = absent(weights, &self.hooks);
                results.fold(&plain * absent, |sum, (child, result)| sum + result * weights[child])
            }
            Join::Fuse(fuser) => {
                let changes: Vec<_> = results.map(|(_, result)| result - &plain).collect();
                fuser.run(cx, &plain, &changes, &plain)
            }
        };
        vec![joined.to_kind(kind)]
    }

    fn sublayers(&self) -> Option<Vec<(usize, &dyn Sublayer)>> {
        self.hooks.iter().map(|(child, hook)| Some((*child, hook.sublayer()?))).collect()
    }
}

/// The weight of adapters that do not act at a site: their result is the base's.
fn absent(weights: &[f64], hooks: &[Member]) -> f64 {
    weights.iter().sum::<f64>() - hooks.iter().map(|(child, _)| weights[*child]).sum::<f64>()
}

/// `change` through a gate of the mean over each sequence of `x`.
fn gated(cx: &SiteCx<'_>, gate: Option<&(Tensor, Tensor)>, x: &Tensor, change: Tensor) -> Tensor {
    let Some((weight, bias)) = gate else { return change };
    let axes = cx.layout.shape().len();
    let x = x.to_kind(Kind::Float).flatten(axes as i64, -1); // heads are one axis with their width
    let mut open = sequence_mean(cx.layout, &x.linear(weight, Some(bias)).sigmoid());
    while open.dim() < change.dim() {
        open = open.unsqueeze(-1);
    }
    change * open
}

impl SiteHook for Members {
    fn shares_base(&self) -> bool {
        self.hooks.iter().all(|(_, hook)| hook.shares_base())
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.joined(cx, x, y, None)
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        if self.sublayers().is_some() {
            return around(self, cx, &x, base);
        }
        if matches!(self.join, Join::Stack) {
            let alone = self.hooks.iter().filter(|(_, hook)| !hook.shares_base());
            let chain: Vec<_> = alone.map(|(_, hook)| hook.as_ref() as &dyn SiteHook).collect();
            let y = base.through(cx, &chain, x.iter().map(Tensor::shallow_clone).collect());
            return self.joined(cx, &x, y, None);
        }
        let y = base.run(&x);
        self.joined(cx, &x, y, Some(base))
    }
}

impl SiteMethod for Members {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let wide = |weights: &OpWeights| OpWeights {
            weight: weights.weight.to_kind(Kind::Float),
            bias: weights.bias.as_ref().map(|bias| bias.to_kind(Kind::Float)),
        };
        let combine = |terms: &[(f64, OpWeights)]| -> Option<OpWeights> {
            let sum = |pick: &dyn Fn(&OpWeights) -> Option<Tensor>| {
                let list: Option<Vec<_>> = terms.iter().map(|(share, weights)| Some(pick(weights)? * *share)).collect();
                list?.into_iter().reduce(|a, b| a + b)
            };
            Some(OpWeights {
                weight: sum(&|w| Some(w.weight.shallow_clone()))?,
                bias: sum(&|w| w.bias.as_ref().map(Tensor::shallow_clone)),
            })
        };
        let each = || self.hooks.iter().map(|(child, hook)| Some((*child, hook.merged(site, base)?)));
        match &self.join {
            // What others do to the result of one before them is no weight that they would see.
            Join::Stack if self.hooks.len() > 1 && !self.hooks.iter().all(|(_, hook)| hook.adds()) => None,
            Join::Stack => self.hooks.iter().try_fold(wide(base), |weights, (_, hook)| hook.merged(site, &weights)),
            Join::Sum(gates) if gates.iter().all(Option::is_none) => {
                let mut terms = vec![(1.0 - self.hooks.len() as f64, wide(base))];
                for one in each() {
                    terms.push((1.0, one?.1));
                }
                combine(&terms)
            }
            Join::Average(weights) => {
                let mut terms = vec![(absent(weights, &self.hooks), wide(base))];
                for one in each() {
                    let (child, merged) = one?;
                    terms.push((weights[child], merged));
                }
                combine(&terms)
            }
            Join::Sum(_) | Join::Fuse(_) => None,
        }
    }

    fn adds(&self) -> bool {
        !matches!(self.join, Join::Fuse(_)) && self.hooks.iter().all(|(_, hook)| hook.adds())
    }

    fn sublayer(&self) -> Option<&dyn Sublayer> {
        self.sublayers().map(|_| self as &dyn Sublayer)
    }
}

/// Only where every adapter of the site is one behind a part of a block.
impl Sublayer for Members {
    fn first(&self) -> &Bottleneck {
        self.sublayers().and_then(|all| Some(all.first()?.1.first())).expect("adapters behind a part of a block")
    }

    fn last(&self) -> &Bottleneck {
        self.sublayers().and_then(|all| Some(all.last()?.1.last())).expect("adapters behind a part of a block")
    }

    fn alone(&self, io: &Io<'_>, state: State) -> State {
        let all = self.sublayers().unwrap_or_default();
        match &self.join {
            Join::Stack => all.iter().fold(state, |state, (_, unit)| unit.alone(io, state)),
            Join::Sum(gates) => {
                let mut sum = state.hidden.shallow_clone();
                for (child, unit) in &all {
                    let Before { own, .. } = unit.first().before(io, &state.hidden, false);
                    let result = unit.alone(io, state.copy()).hidden;
                    let change = if unit.last().is_parallel() { result } else { result - own };
                    sum += gated(io.cx, gates[*child].as_ref(), &io.output, change);
                }
                // What stands in parallel adds the part's own result later.
                let hidden = if self.last().is_parallel() { sum - &io.output } else { sum };
                State { hidden, own: state.own, up: None }
            }
            Join::Average(weights) => {
                let Before { hidden, own, .. } = self.first().before(io, &state.hidden, false);
                let ready = State { hidden, own, up: None };
                let rest = if self.last().is_parallel() { 0.0 } else { absent(weights, &self.hooks) };
                let hidden = all.iter().fold(&ready.own * rest, |sum, (child, unit)| {
                    sum + unit.within(io, &ready).hidden * weights[*child]
                });
                State { hidden, ..ready }
            }
            Join::Fuse(fuser) => {
                let Before { hidden, own, query } = self.last().before(io, &state.hidden, fuser.query_early);
                let ready = State { hidden, own, up: None };
                let changes: Vec<_> = all.iter().filter_map(|(_, unit)| unit.within(io, &ready).up).collect();
                let hidden = fuser.run(io.cx, &query, &changes, &ready.own);
                State { hidden, ..ready }
            }
        }
    }

    fn within(&self, io: &Io<'_>, state: &State) -> State {
        self.alone(io, state.copy())
    }
}

/// The hooks of all adapters, joined at every site by what `join` gives for it. Where one adapter alone acts and nothing
/// stands between, its own hook stays.
///
/// # Errors
/// Those of the adapters' hooks.
pub(crate) fn hooks(
    children: &[Child],
    parts: &Parts<'_>,
    join: impl Fn(SiteId) -> Result<Option<Join>>,
) -> Result<Hooks> {
    let mut by_site: BTreeMap<SiteId, Vec<Member>> = BTreeMap::new();
    for (number, (config, parts)) in each(children, parts)?.into_iter().enumerate() {
        for (site, hook) in config.hooks(&parts)? {
            by_site.entry(site).or_default().push((number, hook));
        }
    }
    let one = |(site, mut hooks): (SiteId, Vec<Member>)| {
        let hook = match join(site)? {
            Some(join) => Box::new(Members { hooks, join }) as Box<dyn SiteMethod>,
            None if hooks.len() == 1 => hooks.remove(0).1,
            None => Box::new(Members { hooks, join: Join::Stack }),
        };
        Ok((site, hook))
    };
    by_site.into_iter().map(one).collect()
}

/// Every adapter with its part of the tensors.
///
/// # Errors
/// Those of the adapters' options; `INTERNAL` when the plan is another's.
pub(crate) fn each<'a>(
    children: &[Child],
    parts: &Parts<'a>,
) -> Result<Vec<(Box<dyn crate::AdapterConfig>, Parts<'a>)>> {
    let missing = || code::INTERNAL.error("the plan is not that of the composition");
    let mut all = Vec::new();
    for (number, config) in configs(children)?.into_iter().enumerate() {
        let plan = parts.plan.children.get(number).ok_or_else(missing)?;
        all.push((config, parts.under(plan, parts.key.named("adapter").named(&children[number].name))));
    }
    Ok(all)
}

/// The first value of a tensor of one of the adapters: from its folder, or as its method works it out.
///
/// # Errors
/// As those; `ADAPTER_FORMAT` when the folder's adapter is another one.
pub(crate) fn initial(children: &[Child], tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
    let lost = || code::INTERNAL.error(format!("tensor `{}` has no value to begin with", tensor.name));
    let (number, own) = owner(children, tensor).ok_or_else(lost)?;
    let child = &children[number];
    let Some(folder) = &child.init_from else {
        return child.config(number)?.initial(&own, base, key);
    };
    let at = format!("adapters[{number}].init_from");
    let folder = Path::new(folder);
    let value = if crate::adapterhub::is_folder(folder) {
        let adapter = crate::adapterhub::import(folder, base).map_err(|error| error.at(&at))?;
        adapter.parts().get(&own.name).map(Tensor::detach).ok()
    } else {
        crate::import(folder).and_then(|adapter| adapter.values()).map_err(|error| error.at(&at))?.remove(&own.name)
    };
    let shape: Vec<i64> = own.shape.iter().map(|n| *n as i64).collect();
    value.filter(|value| value.size() == shape).map(|value| value.to_device(base.device())).ok_or_else(|| {
        code::ADAPTER_FORMAT
            .error(format!("{at}: tensor `{}`: not in {} with shape {:?}", own.name, folder.display(), own.shape))
            .hint("the options of the adapter here must be those it was trained with")
    })
}

/// What the adapters that are trained do after a step.
///
/// # Errors
/// As theirs.
pub(crate) fn after_step(children: &[Child], parts: &Parts<'_>, step: StepInfo) -> Result<()> {
    let trained = |parts: &Parts<'_>| parts.plan.trained().next().is_some();
    each(children, parts)?
        .iter()
        .filter(|(_, parts)| trained(parts))
        .try_for_each(|(config, parts)| config.after_step(parts, step))
}

/// The adapters' terms of the loss.
pub(crate) fn regulariser(children: &[Child], parts: &Parts<'_>) -> Option<Tensor> {
    let trained = |parts: &Parts<'_>| parts.plan.trained().next().is_some();
    let all = each(children, parts).ok()?;
    let terms = all.iter().filter(|(_, parts)| trained(parts)).filter_map(|(config, parts)| config.regulariser(parts));
    terms.reduce(|a, b| a + b)
}

/// The tensors of the file, when an adapter writes others than it has.
///
/// # Errors
/// As the adapters'.
pub(crate) fn exported(children: &[Child], parts: &Parts<'_>) -> Result<Option<Vec<(String, Tensor)>>> {
    let mut tensors: BTreeMap<&str, Tensor> = BTreeMap::new();
    for tensor in parts.plan.tensors.iter().filter(|tensor| tensor.in_file()) {
        tensors.insert(&tensor.name, parts.get(&tensor.name)?.detach());
    }
    let mut others = Vec::new();
    for (child, (config, own)) in children.iter().zip(each(children, parts)?) {
        let Some(list) = config.exported(&own)? else { continue };
        let mine = format!("{}.", child.name);
        tensors.retain(|name, _| !name.starts_with(&mine));
        let named = |(name, value): (String, Tensor)| {
            let name = if name.starts_with(&mine) { name } else { format!("{mine}{name}") };
            (name, value)
        };
        others.extend(list.into_iter().map(named));
    }
    if others.is_empty() {
        return Ok(None);
    }
    others.extend(tensors.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Ok(Some(others))
}
