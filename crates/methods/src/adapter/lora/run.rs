//! LoRA at one site.

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Backbone, BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::Tensor;

use super::Config;
use super::dora::{self, Dora};
use super::factors::Factors;
use super::tokens;
use crate::adapter::common::{Dropout, biases};
use crate::adapter::trainable_tokens::DELTA;
use crate::adapter::{AdapterConfig, Hooks, Parts, SiteMethod};
use crate::plan::PlannedTensor;

struct Lora {
    factors: Factors,
    dropout: Dropout,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let mut hooks = Hooks::new();
    for id in &parts.plan.sites {
        hooks.insert(*id, hook(config, parts, *id)?);
    }
    biases::wrap(parts, &mut hooks)?;
    if let Some(tokens) = &config.trainable_token_indices {
        tokens::hooks(tokens, parts, &mut hooks)?;
    }
    Ok(hooks)
}

fn hook(config: &Config, parts: &Parts<'_>, id: SiteId) -> Result<Box<dyn SiteMethod>> {
    let factors = Factors::of(config, parts, id)?;
    let dropout = Dropout::new(config.lora_dropout, parts.key, "lora_dropout", &parts.site(id).path);
    if parts.plan.part(id, "magnitude").is_none() {
        return Ok(Box::new(Lora { factors, dropout }));
    }
    let magnitude = parts.part(id, "magnitude")?.shallow_clone();
    Ok(Box::new(Dora { factors, dropout, magnitude }))
}

/// First values that are worked out from the frozen weight.
pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
    let site = &base.config().sites()[tensor.site];
    if let Some(rows) =
        config.trainable_token_indices.as_ref().filter(|_| tensor.part == DELTA).and_then(|t| t.of(site))
    {
        return rows.initial(tensor, base, key);
    }
    let missing = || code::INTERNAL.error(format!("`{}` has no weight", site.path));
    let weight = Factors::frozen(site, base.weights(site.id).ok_or_else(missing)?);
    let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
    if tensor.part == "magnitude" {
        // What the factors add begins at zero, so that the first direction is the frozen weight's own.
        return Ok(dora::norm(&weight).reshape(shape));
    }
    let r = i64::from(config.rank(&site.path)?);
    let (a, b) = config.init_lora_weights.start()?.factors(&weight, r, config.scaling(&site.path)?, &site.path, key);
    Ok(if tensor.part.ends_with('A') { a } else { b })
}

impl SiteHook for Lora {
    fn shares_base(&self) -> bool {
        !self.factors.reruns()
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let delta = self.factors.delta(&self.factors.input(cx, &self.dropout, &x[0])); // [.., out]
        let delta = match self.factors.taken(&x[0]) {
            Some(taken) => delta - taken,
            None => delta,
        };
        // A table that scales its rows scales what is added to them.
        let delta = if cx.site.scale == 1.0 { delta } else { delta * cx.site.scale };
        y.iter().map(|y| (y + &delta).to_kind(y.kind())).collect()
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let y = base.run(&x);
        if !self.factors.reruns() {
            return self.after(cx, &x, y);
        }
        let dropped: Vec<_> = [self.factors.input(cx, &self.dropout, &x[0])]
            .into_iter()
            .chain(x.iter().skip(1).map(Tensor::shallow_clone))
            .collect();
        let delta = self.factors.rerun(&dropped, base);
        y.into_iter()
            .map(|y| delta.as_ref().map_or_else(|| y.shallow_clone(), |delta| (&y + delta).to_kind(y.kind())))
            .collect()
    }
}

impl SiteMethod for Lora {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        self.factors.stored(site, base, &(Factors::frozen(site, base) + self.factors.dense()))
    }

    fn adds(&self) -> bool {
        true
    }

    fn low_rank(&self) -> Option<(Tensor, Tensor)> {
        self.factors.pair()
    }
}
