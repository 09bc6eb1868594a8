//! The hooks: the block's input is remembered, and at the target it becomes the state of each segment and what later
//! segments add.

use std::collections::BTreeMap;

use pleach_base::{Result, code};
use pleach_nn::{Form, Layout, OpWeights, Role, Segment, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::normal::Rule;
use super::rows::Rows;
use super::state::{Generator, Maps, Sum, feeding};
use super::{A1, A2, A3, B, Config, NORM};
use crate::adapter::common::{Dropout, Relay};
use crate::adapter::{Hooks, Parts, SiteMethod};

/// At the place before a block: the hidden states that its targets' states are made of.
struct Input(Vec<Relay<Tensor>>);

/// At a target.
struct Target {
    generator: Generator,
    hidden: Relay<Tensor>,
    dropout: Dropout,
    /// While a context is read: what went before this pass, and what there is after it.
    reading: Option<Relay<Sum>>,
}

/// The hooks; `reading` gives each target a cell for the sum of a context's states.
pub(super) fn hooks(config: &Config, parts: &Parts<'_>, reading: Option<&BTreeMap<SiteId, Relay<Sum>>>) -> Result<Hooks> {
    let mut inputs: BTreeMap<SiteId, Vec<Relay<Tensor>>> = BTreeMap::new();
    let mut hooks = Hooks::new();
    for id in parts.plan.sites.iter().filter(|id| parts.site(**id).role != Role::BlockIn) {
        let site = parts.site(*id);
        let hidden = Relay::new();
        inputs.entry(input_of(parts, site)?).or_default().push(hidden.share());
        let target = Target {
            generator: generator(config, parts, site)?,
            hidden,
            dropout: Dropout::new(config.dropout, parts.key, "fastlora", &site.path),
            reading: reading.and_then(|reading| reading.get(id)).map(Relay::share),
        };
        hooks.insert(*id, Box::new(target));
    }
    for (id, cells) in inputs {
        hooks.insert(id, Box::new(Input(cells)));
    }
    Ok(hooks)
}

/// The place before the site's block.
fn input_of(parts: &Parts<'_>, site: &Site) -> Result<SiteId> {
    let before = |id: &&SiteId| parts.site(**id).role == Role::BlockIn && parts.site(**id).block == site.block;
    let missing = || code::INTERNAL.error(format!("the place before the block of `{}` is not planned", site.path));
    parts.plan.sites.iter().find(before).copied().ok_or_else(missing)
}

/// The generator of a target over its planned tensors.
pub(super) fn generator(config: &Config, parts: &Parts<'_>, site: &Site) -> Result<Generator> {
    let part = |name| parts.part(site.id, name).map(Tensor::shallow_clone);
    Ok(config.generator([part(A1)?, part(A2)?, part(A3)?, part(B)?, part(NORM)?]))
}

impl Config {
    /// The generator of these tensors: `A1`, `A2`, `A3`, `B`, the norm's weight.
    pub(crate) fn generator(&self, [a1, a2, a3, b, norm]: [Tensor; 5]) -> Generator {
        let rule = Rule { normalise: self.fastlora_norm, rank: i64::from(self.fastlora_max_rank) };
        Generator { a1, a2, a3, b, norm, scale: self.scale(), merge: self.fastlora_merge, rule }
    }
}

impl SiteHook for Input {
    fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.0.iter().for_each(|cell| cell.put(y[0].shallow_clone()));
        y
    }
}

impl SiteMethod for Input {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}

impl Target {
    /// The states of the sequences that are asked for.
    fn states(&self, layout: &Layout, hidden: &Tensor, wanted: &[usize]) -> BTreeMap<usize, Tensor> {
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        let states = match layout.form() {
            Form::Padded { .. } => {
                let index: Vec<i64> = wanted.iter().map(|i| *i as i64).collect();
                let index = Tensor::from_slice(&index).to_device(hidden.device());
                let mask = layout.real().map(|real| real.index_select(0, &index));
                self.generator.chunk(&hidden.index_select(0, &index), mask.as_ref())
            }
            Form::Packed { .. } => {
                let rows = Rows::new(layout, wanted);
                self.generator.chunk(&rows.of(hidden), Some(&rows.real))
            }
        };
        wanted.iter().copied().zip(states.unbind(0)).collect()
    }

    /// What the sequences add, `[.., out]`, given their maps.
    fn added(&self, layout: &Layout, x: &Tensor, maps: &Maps) -> Tensor {
        let index = Tensor::from_slice(&maps.index).to_device(x.device());
        let maps = maps.table.index_select(0, &index);
        match layout.form() {
            Form::Padded { .. } => self.generator.added(x, &maps),
            Form::Packed { .. } => {
                let rows = Rows::new(layout, &(0..layout.sequences()).collect::<Vec<_>>());
                rows.tokens(&self.generator.added(&rows.of(x), &maps))
            }
        }
    }
}

impl SiteHook for Target {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let Some(hidden) = self.hidden.take() else { return y };
        let (layout, before) = (cx.layout, self.reading.as_ref().and_then(Relay::take));
        let alone;
        let segments = match layout.segments() {
            [] if self.reading.is_none() => return y,
            [] => {
                alone = vec![Segment::default(); layout.sequences()];
                &alone
            }
            segments => segments,
        };
        let wanted = if self.reading.is_some() { (0..segments.len()).collect() } else { feeding(segments) };
        let states = self.states(layout, &hidden, &wanted);
        let key = self.dropout.key.with(cx.step).with(u64::from(cx.pass));
        let maps = self.generator.maps(segments, &states, before.as_ref(), (cx.train, key));
        if let Some(cell) = &self.reading {
            let sum = states.values().fold(before, |sum, chunk| Some(sum.map_or_else(|| Sum::of(chunk), |s| s.and(chunk))));
            sum.into_iter().for_each(|sum| cell.put(sum));
        }
        let Some(maps) = maps else { return y };
        let added = self.added(layout, &self.dropout.apply(cx, &x[0]), &maps);
        y.iter().map(|y| (y.to_kind(Kind::Float) + &added).to_kind(y.kind())).collect()
    }
}

impl SiteMethod for Target {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}
