//! p-Adapter at its sites. The hook at attention's inputs has the frozen attention run in the open, the one at its weights
//! notes them, and what both saw waits at the output projection, where the adapter is: see `Relay`.

use pleach_base::Result;
use pleach_nn::{BaseOp, Form, Layout, OpWeights, Role, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::graph::{Graph, pooling};
use super::module::{Affine, Beside, Module};
use super::plan::{DOWN, GATE, M, OUT, P, REDUCE, UP, is_cross, spot};
use super::{Config, CrossBeta};
use crate::adapter::common::Relay;
use crate::adapter::{Hooks, Parts, SiteMethod};

/// The range that exponents are kept in.
const RANGE: (f64, f64) = (1.0, 3.0);

/// Weights of attention of some sequences, by their numbers in the batch.
struct Weights {
    sequences: Vec<usize>,
    values: Tensor, // [n, heads, queries, keys]
}

/// A graph of some sequences, by their numbers among the rows at hand.
struct Part {
    sequences: Vec<usize>,
    graph: Graph,
}

/// At attention's inputs.
struct Watch {
    weights: Relay<Vec<Weights>>,
    parts: Relay<Vec<Part>>,
    /// Bins of an encoder's values; none in attention of a sequence on itself.
    bins: Option<usize>,
}

/// At attention's weights.
struct Note(Relay<Vec<Weights>>);

/// At the output projection.
struct Adapted {
    parts: Relay<Vec<Part>>,
    module: Module,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let mut hooks = Hooks::new();
    for id in &parts.plan.sites {
        let affine = |names: [&str; 2]| -> Result<Affine> {
            let part = |name| parts.part(*id, name).map(Tensor::shallow_clone);
            Ok(Affine { weight: part(names[0])?, bias: part(names[1])? })
        };
        if parts.site(*id).role == Role::SublayerOut {
            hooks.insert(*id, Box::new(Beside { down: affine(DOWN)?, up: affine(UP)? }));
        }
        let Some(spot) = spot(parts.sites, *id) else { continue };
        let (weights, graphs, cross) = (Relay::new(), Relay::new(), is_cross(parts.sites, *id));
        let bins = cross.then_some(config.image_sample_len as usize);
        let heads = parts.site(spot.kv).dims.heads.map_or(1, |heads| heads.query as i64);
        let module = Module {
            reduce: affine(REDUCE)?,
            gate: affine(GATE)?,
            out: affine(OUT)?,
            p: exponent(config, parts, *id, cross)?,
            m: parts.part(*id, M)?.shallow_clone(),
            mu: config.mu,
            eps: config.eps,
            heads,
            cross_own: config.cross_beta == CrossBeta::Query,
        };
        hooks.insert(spot.kv, Box::new(Watch { weights: weights.share(), parts: graphs.share(), bins }));
        hooks.insert(spot.scores, Box::new(Note(weights)));
        hooks.insert(*id, Box::new(Adapted { parts: graphs, module }));
    }
    Ok(hooks)
}

fn exponent(config: &Config, parts: &Parts<'_>, site: SiteId, cross: bool) -> Result<Tensor> {
    if config.learnable_p {
        return parts.part(site, P).map(Tensor::shallow_clone);
    }
    let p = if cross { config.p_cross } else { config.p_self };
    Ok(Tensor::from_slice(&[p as f32]).to_device(parts.part(site, M)?.device()))
}

/// Keeps the trained exponents in their range.
pub(super) fn clip(parts: &Parts<'_>) -> Result<()> {
    for tensor in parts.plan.trained().filter(|tensor| tensor.part == P) {
        let _ = parts.get(&tensor.name)?.shallow_clone().clamp_(RANGE.0, RANGE.1);
    }
    Ok(())
}

impl SiteHook for Note {
    fn after(&self, cx: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let mut noted = self.0.take().unwrap_or_default();
        noted.push(Weights { sequences: cx.layout.numbers(), values: y[0].to_kind(Kind::Float) });
        self.0.put(noted);
        y
    }
}

impl SiteHook for Watch {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        self.weights.put(Vec::new());
        let y = base.run(&x);
        let own = cx.layout.numbers();
        let place = |number: &usize| own.iter().position(|other| other == number).unwrap_or_default();
        let noted = self.weights.take().unwrap_or_default().into_iter();
        let parts = noted.map(|weights| {
            let sequences: Vec<_> = weights.sequences.iter().map(place).collect();
            let graph = self.graph(cx, &x, &sequences, weights.values);
            Part { sequences, graph }
        });
        self.parts.put(parts.collect());
        y
    }
}

impl Watch {
    /// The graph of some of the rows; its nodes are still to be projected.
    fn graph(&self, cx: &SiteCx<'_>, x: &[Tensor], sequences: &[usize], weights: Tensor) -> Graph {
        let heads = weights.size()[1];
        let values = take(cx.keys, &x[2], sequences); // [n, k, kv heads, dim]
        let each = heads / values.size()[2];
        let values = values.repeat_interleave_self_int(each, -2, None).flatten(-2, -1); // [n, k, d]
        let Some(bins) = self.bins else { return Graph { weights, values, queries: None } };
        let lengths: Vec<_> = sequences.iter().map(|sequence| cx.keys.lengths()[*sequence]).collect();
        let counts: Vec<_> = lengths.iter().map(|length| bins.min(*length)).collect();
        let width = usize::try_from(values.size()[1]).unwrap_or_default();
        let pool = Tensor::from_slice(&pooling(&lengths, &counts, bins, width)).to_device(values.device());
        let pool = pool.to_kind(Kind::Float).reshape([lengths.len() as i64, bins as i64, -1]); // [n, bins, k]
        let queries = take(cx.layout, &x[0], sequences).flatten(-2, -1);
        Graph {
            weights: weights.matmul(&pool.unsqueeze(1).transpose(2, 3)),
            values: pool.matmul(&values.to_kind(Kind::Float)).to_kind(values.kind()),
            queries: Some(queries),
        }
    }
}

impl SiteHook for Adapted {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x).remove(0);
        let parts = self.parts.take().unwrap_or_default();
        let project = |nodes: &Tensor| base.run(&[nodes.shallow_clone()]).remove(0).to_kind(Kind::Float);
        let spread = parts.iter().map(|part| {
            let Graph { weights, values, queries } = &part.graph;
            let weights = weights.shallow_clone();
            self.module.spread(&Graph { weights, values: project(values), queries: queries.as_ref().map(project) })
        });
        let spread = put_back(cx.layout, &parts, &spread.collect::<Vec<_>>());
        vec![self.module.join(&y.to_kind(Kind::Float), &spread).to_kind(y.kind())]
    }
}

impl SiteHook for Beside {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let residual = self.run(&x[1].to_kind(Kind::Float)).to_kind(x[1].kind());
        base.run(&[x[0].shallow_clone(), residual])
    }
}

/// Some sequences of a tensor over tokens, `[n, length, ..]`: in the packed form they have one length.
fn take(layout: &Layout, x: &Tensor, sequences: &[usize]) -> Tensor {
    match layout.form() {
        Form::Padded { .. } => {
            let rows: Vec<i64> = sequences.iter().map(|sequence| *sequence as i64).collect();
            x.index_select(0, &Tensor::from_slice(&rows).to_device(x.device()))
        }
        Form::Packed { .. } => {
            let tokens = Tensor::from_slice(&tokens(layout, sequences)).to_device(x.device());
            x.index_select(0, &tokens).unflatten(0, [sequences.len() as i64, -1])
        }
    }
}

/// What each part gave, `[n, length, ..]`, as a tensor over tokens.
fn put_back(layout: &Layout, parts: &[Part], given: &[Tensor]) -> Tensor {
    let back = |order: Vec<i64>, all: Tensor| {
        let order = Tensor::from_slice(&order).argsort(0, false).to_device(all.device());
        all.index_select(0, &order)
    };
    let all = || parts.iter().flat_map(|part| part.sequences.iter().copied()).collect::<Vec<_>>();
    match layout.form() {
        Form::Padded { .. } => back(all().into_iter().map(|row| row as i64).collect(), Tensor::cat(given, 0)),
        Form::Packed { .. } => {
            let flat: Vec<_> = given.iter().map(|given| given.flatten(0, 1)).collect();
            back(tokens(layout, &all()), Tensor::cat(&flat, 0))
        }
    }
}

/// Numbers of the tokens of some sequences of the packed form.
fn tokens(layout: &Layout, sequences: &[usize]) -> Vec<i64> {
    sequences.iter().flat_map(|sequence| layout.token_range(*sequence)).map(|token| token as i64).collect()
}

/// None of them folds into weights.
macro_rules! never_merged {
    ($($hook:ty),*) => {
        $(impl SiteMethod for $hook {
            fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
                None
            }
        })*
    };
}

never_merged!(Note, Watch, Adapted, Beside);
