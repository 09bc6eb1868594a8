//! From a context to a plain low-rank adapter: the model reads it in chunks, states are summed, and each target's map
//! becomes a pair of LoRA.

use std::collections::BTreeMap;

use pleach_base::{Result, code};
use pleach_nn::{Backbone, Forward, Group, HookSet, Inputs, Layout, Segment, SiteHook, SiteId};
use serde_json::json;
use tch::{Kind, Tensor};

use super::state::{Generator, Sum};
use super::{Config, Normalise, run};
use crate::adapter::common::{Relay, refuse};
use crate::adapter::{AdapterConfig as _, Context, Export, Feeding, Hooks, Options as _, Parts, Segments, Written, lora};

/// The hooks while a context is read.
struct Reading(Hooks);

impl HookSet for Reading {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.0.get(&site).map(|hook| hook.as_ref() as &dyn SiteHook)
    }
}

/// Name of a target's state among those that are kept, and of how many chunks it is.
fn names(path: &str) -> [String; 2] {
    ["S", "chunks"].map(|what| format!("{path}.{what}"))
}

/// Reads a context and writes its adapter.
pub(super) fn written(config: &Config, parts: &Parts<'_>, base: &dyn Backbone, context: &Context<'_>) -> Result<Written> {
    let _no_grad = tch::no_grad_guard();
    if context.ids.is_empty() {
        return Err(refuse("context", "has no token"));
    }
    let sums = read(config, parts, base, context)?;
    let options = |rank: i64| {
        let paths: Vec<&str> = sums.keys().map(|id| parts.site(*id).path.as_str()).collect();
        let alpha = config.scale() * rank as f64;
        serde_json::from_value::<lora::Config>(json!({"r": rank, "lora_alpha": alpha, "target_modules": paths}))
    };
    let mut pairs = BTreeMap::new();
    let mut states = BTreeMap::new();
    for (id, sum) in &sums {
        let site = parts.site(*id);
        let generator = run::generator(config, parts, site)?;
        pairs.insert(*id, pair(config, parts, &generator, sum));
        let [state, chunks] = names(&site.path);
        states.insert(state, sum.state.shallow_clone());
        states.insert(chunks, Tensor::from_slice(&[sum.chunks as i64]));
    }
    let rank = pairs.values().map(|(a, _)| a.size()[0]).max().unwrap_or(1);
    let lora = options(rank).map_err(|error| code::INTERNAL.error("the written adapter has no options").caused_by(error))?;
    lora.validate()?;
    let plan = lora.plan(base.config())?;
    let mut tensors = Vec::new();
    for tensor in &plan.tensors {
        let (a, b) = &pairs[&tensor.site];
        let value = if tensor.part == "lora_A" { a } else { b };
        tensors.push((tensor.name.clone(), value.contiguous()));
    }
    let config = lora.adapter_config(base.config(), &plan, &Export { base: context.base });
    Ok(Written { config, tensors, states })
}

/// `A` `[k, in]` and `B` `[out, k]`: of the kept directions with the norm `svd`, else of all.
fn pair(config: &Config, parts: &Parts<'_>, generator: &Generator, sum: &Sum) -> (Tensor, Tensor) {
    match config.fastlora_norm {
        Normalise::Svd => generator.short_pair(sum, parts.key),
        Normalise::Frobenius | Normalise::Spectral => generator.pair(&generator.map(sum, parts.key)),
    }
}

/// The sum of the context's states at each target.
fn read(config: &Config, parts: &Parts<'_>, base: &dyn Backbone, context: &Context<'_>) -> Result<BTreeMap<SiteId, Sum>> {
    let targets: Vec<SiteId> = parts.plan.sites.iter().copied().filter(|id| parts.plan.part(*id, super::B).is_some()).collect();
    let relays: BTreeMap<SiteId, Relay<Sum>> = targets.iter().map(|id| (*id, Relay::new())).collect();
    for (id, relay) in &relays {
        before(parts, *id, context)?.into_iter().for_each(|sum| relay.put(sum));
    }
    let hooks = Reading(run::hooks(config, parts, Some(&relays))?);
    let window = if context.feeding == Feeding::Concat { context.ids.len() } else { config.window as usize };
    let cut = Segments { window, completion: false, reconstruction: false };
    let chunks: Vec<_> = cut.chunks(context.ids.len()).collect();
    let most = base.config().info().max_positions;
    if chunks.iter().any(|chunk| chunk.len() > most) {
        let why = format!("{} tokens in one sequence are more than the model's {most}", context.ids.len());
        return Err(refuse("mode", &why));
    }
    let rows: Vec<&[i64]> = chunks.iter().map(|chunk| &context.ids[chunk.clone()]).collect();
    match context.feeding {
        Feeding::SequentialLong => rows.iter().for_each(|row| pass(base, &hooks, &[row], false)),
        feeding => pass(base, &hooks, &rows, feeding == Feeding::Sequential),
    }
    let found = |(id, relay): (SiteId, Relay<Sum>)| {
        let missing = || code::INTERNAL.error(format!("`{}` was not run", parts.site(id).path));
        Ok((id, relay.take().ok_or_else(missing)?))
    };
    relays.into_iter().map(found).collect()
}

/// What an earlier part of the context left at a target.
fn before(parts: &Parts<'_>, id: SiteId, context: &Context<'_>) -> Result<Option<Sum>> {
    let Some(states) = context.before else { return Ok(None) };
    let [state, chunks] = names(&parts.site(id).path);
    let of = |name: &str| {
        let missing = || code::ADAPTER_FORMAT.error(format!("the states have no `{name}`"));
        states.get(name).ok_or_else(missing)
    };
    let (state, planned) = (of(&state)?, [super::A2, super::A3].map(|part| parts.plan.part(id, part)));
    let shape: Vec<i64> = planned.iter().flatten().map(|tensor| tensor.shape[0] as i64).collect();
    if state.size() != shape {
        let why = format!("the states are {:?}, and the generator's {shape:?}", state.size());
        return Err(code::ADAPTER_FORMAT.error(why));
    }
    let chunks = u64::try_from(of(&chunks)?.int64_value(&[0])).unwrap_or(1);
    Ok(Some(Sum { state: state.to_kind(Kind::Float), chunks }))
}

/// Runs some sequences; `in_order`: as segments of one document that know of those before them.
fn pass(base: &dyn Backbone, hooks: &dyn HookSet, rows: &[&[i64]], in_order: bool) {
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let width = lengths.iter().copied().max().unwrap_or(1);
    let mut ids = vec![0i64; rows.len() * width];
    rows.iter().zip(ids.chunks_mut(width)).for_each(|(row, cells)| cells[..row.len()].copy_from_slice(row));
    let layout = Layout::padded(lengths, width, vec![0; rows.len()], base.device());
    let segment = |index| Segment { index, sees: if in_order { index } else { 0 } };
    let layout = layout.segmented((0..rows.len()).map(segment).collect());
    let ids = Tensor::from_slice(&ids).reshape(layout.shape()).to_device(base.device());
    let groups = [Group { rows: 0..rows.len(), hooks }];
    let cx = Forward::eval(base.config().sites(), &layout, &groups);
    let _ = base.forward(&cx, &Inputs::ids(ids));
}
