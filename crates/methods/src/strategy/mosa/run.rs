//! The wrapped adapter with tensors: hooks that run through drawn experts, masked updates, the merge.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::{Kind, Tensor};

use super::MaskMode;
use super::draw::draw;
use super::split::{bands, merged, owned, scores, within};
use super::wrap::{BANDS, Kin, START, Split, expert, kin};
use crate::adapter::{Half, Hooks, Parts, SiteMethod};
use crate::plan::{Plan, PlannedTensor};

/// One site: a hook for every choice of experts, and one over the merged tensors.
struct Drawn {
    key: Key,
    experts: u32,
    /// Experts of the down and of the up projection; 1 where that is shared.
    counts: [usize; 2],
    /// By the number of the down expert, then of the up expert.
    choices: Vec<Box<dyn SiteMethod>>,
    merged: Box<dyn SiteMethod>,
}

impl Drawn {
    fn now(&self, cx: &SiteCx<'_>) -> &dyn SiteMethod {
        if !cx.train {
            return self.merged.as_ref();
        }
        let [down, up] = draw(self.key, cx.step, cx.pass, cx.site.id, self.experts);
        let [downs, ups] = self.counts;
        self.choices[(down % downs) * ups + up % ups].as_ref()
    }
}

impl SiteHook for Drawn {
    fn shares_base(&self) -> bool {
        self.merged.shares_base()
    }

    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        self.now(cx).after(cx, x, y)
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        self.now(cx).around(cx, x, base)
    }
}

impl SiteMethod for Drawn {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        self.merged.merged(site, base)
    }

    fn adds(&self) -> bool {
        self.merged.adds()
    }
}

/// The wrapped adapter's plan.
fn inner<'a>(parts: &Parts<'a>) -> Result<&'a Plan> {
    parts.plan.children.first().ok_or_else(|| code::INTERNAL.error("the plan is not that of a split adapter"))
}

/// The wrapped adapter's tensors, experts merged.
pub(super) fn merged_parts<'a>(parts: &Parts<'a>) -> Result<Parts<'a>> {
    Ok(parts.under(inner(parts)?, parts.key))
}

/// The wrapped adapter's plan with an expert's tensors in place of those that are split.
fn choice(split: &Split, plan: &Plan, [down, up]: [usize; 2]) -> Plan {
    let mut plan = plan.clone();
    for tensor in &mut plan.tensors {
        let number = match split.half(tensor) {
            Some(Half::Down) => down,
            Some(Half::Up) => up,
            None => continue,
        };
        tensor.name = expert(&tensor.name, number);
    }
    plan
}

pub(super) fn hooks(split: &Split, parts: &Parts<'_>) -> Result<Hooks> {
    let plan = inner(parts)?;
    let counts = [Half::Down, Half::Up].map(|half| {
        let is_split = plan.tensors.iter().any(|tensor| split.half(tensor) == Some(half));
        if is_split { split.experts() } else { 1 }
    });
    let mut choices: BTreeMap<SiteId, Vec<Box<dyn SiteMethod>>> = BTreeMap::new();
    for down in 0..counts[0] {
        for up in 0..counts[1] {
            let plan = choice(split, plan, [down, up]);
            for (site, hook) in split.inner.hooks(&parts.under(&plan, parts.key))? {
                choices.entry(site).or_default().push(hook);
            }
        }
    }
    let whole = split.inner.hooks(&merged_parts(parts)?)?;
    let (key, experts) = (parts.key, split.options.expert_num);
    let one = |(site, merged)| {
        let choices = choices.remove(&site).unwrap_or_default();
        (site, Box::new(Drawn { key, experts, counts, choices, merged }) as Box<dyn SiteMethod>)
    };
    Ok(whole.into_iter().map(one).collect())
}

/// Who owns the entries of a split tensor, as drawn from its own key.
pub(super) fn drawn_bands(split: &Split, tensor: &PlannedTensor, key: Key) -> Tensor {
    let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
    let mode = if shape.len() == 2 { split.options.mask_mode } else { MaskMode::All };
    let score = scores(tensor.numel() as usize, key).reshape(shape);
    bands(&score, i64::from(split.options.expert_num), mode).to_kind(Kind::Float)
}

/// Every expert of a split tensor that has masks: name, number, masks.
fn masked<'a>(parts: &Parts<'a>) -> impl Iterator<Item = (&'a str, &'a str, usize, &'a Tensor)> {
    let parts = *parts;
    parts.plan.trained().filter_map(move |tensor| {
        let (own, Kin::Expert(number)) = kin(&tensor.name) else { return None };
        let bands = parts.get(&format!("{own}{BANDS}")).ok()?;
        Some((tensor.name.as_str(), own, number, bands))
    })
}

/// Gradients of experts, cut down to what each owns.
pub(super) fn mask(parts: &Parts<'_>) -> Result<()> {
    for (name, _, number, bands) in masked(parts) {
        let mut grad = parts.get(name)?.grad();
        if grad.defined() {
            let _ = grad.g_mul_(&owned(bands, number).to_kind(Kind::Float));
        }
    }
    Ok(())
}

/// After an update: what is not an expert's own is as it was (decay moves it), and the merged tensors follow.
pub(super) fn settle(split: &Split, parts: &Parts<'_>) -> Result<()> {
    for (name, own, number, bands) in masked(parts) {
        let value = parts.get(name)?;
        let start = match parts.get(&format!("{own}{START}")) {
            Ok(start) => start.shallow_clone(),
            Err(_) => value.zeros_like(),
        };
        value.shallow_clone().copy_(&within(&value.detach(), &start, bands, number));
    }
    for tensor in inner(parts)?.tensors.iter().filter(|tensor| split.half(tensor).is_some()) {
        let experts = (0..split.experts()).map(|number| Ok(parts.get(&expert(&tensor.name, number))?.detach()));
        let experts = experts.collect::<Result<Vec<_>>>()?;
        let bands = parts.get(&format!("{}{BANDS}", tensor.name)).ok();
        parts.get(&tensor.name)?.shallow_clone().copy_(&merged(&experts, bands, split.options.merge));
    }
    Ok(())
}

/// The wrapped adapter's file.
pub(super) fn exported(split: &Split, parts: &Parts<'_>) -> Result<Vec<(String, Tensor)>> {
    let own = merged_parts(parts)?;
    if let Some(tensors) = split.inner.exported(&own)? {
        return Ok(tensors);
    }
    let in_file = own.plan.tensors.iter().filter(|tensor| tensor.in_file());
    in_file.map(|tensor| Ok((tensor.name.clone(), own.get(&tensor.name)?.detach()))).collect()
}
