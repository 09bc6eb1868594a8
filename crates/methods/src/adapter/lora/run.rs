//! LoRA at one site.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Layout, OpWeights, ParamTree, Site, SiteCx, SiteHook, SiteId, WeightLayout};
use tch::{Kind, Tensor};

use super::Config;
use crate::adapter::SiteMethod;
use crate::plan::Plan;

struct Lora {
    a: Tensor, // [r, in]
    b: Tensor, // [out, r]
    scaling: f64,
    dropout: f64,
    key: Key,
}

pub(super) fn hooks(
    config: &Config,
    plan: &Plan,
    params: &ParamTree,
    key: Key,
) -> Result<BTreeMap<SiteId, Box<dyn SiteMethod>>> {
    let hook = |id: &SiteId| {
        let part = |part| {
            let planned = plan.part(*id, part);
            let leaf = planned.and_then(|tensor| Some((tensor.name.as_str(), params.get(&tensor.name)?)));
            leaf.ok_or_else(|| code::INTERNAL.error(format!("site {} has no {part}", id.0)))
        };
        let ((name, a), (_, b)) = (part("lora_A")?, part("lora_B")?);
        let path = name.strip_prefix("base_model.model.").and_then(|rest| rest.strip_suffix(".lora_A.weight"));
        let path = path.unwrap_or(name);
        let hook = Lora {
            a: a.shallow_clone(),
            b: b.shallow_clone(),
            scaling: config.scaling(path)?,
            dropout: config.lora_dropout,
            key: key.named("lora_dropout").named(path),
        };
        Ok((*id, Box::new(hook) as Box<dyn SiteMethod>))
    };
    plan.sites.iter().map(hook).collect()
}

impl SiteHook for Lora {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let mut input = x[0].to_kind(Kind::Float); // [.., in]
        if cx.train && self.dropout > 0.0 {
            let key = self.key.with(cx.step).with(u64::from(cx.pass));
            let mask = keep_mask(cx.layout, cx.site.dims.input, self.dropout, key);
            // Not in place: in float32 this is the model's own tensor, which the base and other hooks read too.
            input = &input * mask;
        }
        let delta = input.linear(&self.a, None::<&Tensor>).linear(&self.b, None::<&Tensor>) * self.scaling; // [.., out]
        y.iter().map(|y| (y + &delta).to_kind(y.kind())).collect()
    }
}

impl SiteMethod for Lora {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        let delta = self.b.matmul(&self.a) * self.scaling; // [out, in]
        let input_first = site.weight.as_ref().is_some_and(|weight| weight.layout == WeightLayout::InOut);
        let delta = if input_first { delta.tr() } else { delta };
        let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
        Some(OpWeights { weight: base.weight.to_kind(Kind::Float) + delta, bias })
    }
}

/// `0` or `1 / (1 - p)` for every input of every real token, drawn for each sample by its id: the same whoever shares
/// the batch, in both layouts, and wherever padding ends.
fn keep_mask(layout: &Layout, width: usize, p: f64, key: Key) -> Tensor {
    let scale = (1.0 / (1.0 - p)) as f32;
    let mut shape = layout.shape();
    let total: i64 = shape.iter().product();
    let mut values = vec![0.0f32; total as usize * width];
    for (sequence, sample) in layout.samples().iter().enumerate() {
        let tokens = layout.token_range(sequence);
        let mut rng = key.with(*sample).rng();
        for value in &mut values[tokens.start * width..tokens.end * width] {
            *value = if f64::from(rng.uniform()) >= p { scale } else { 0.0 };
        }
    }
    shape.push(width as i64);
    Tensor::from_slice(&values).reshape(&shape).to_device(layout.device())
}
