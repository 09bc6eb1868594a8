//! LoRA at one site.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{OpWeights, ParamTree, Site, SiteCx, SiteHook, SiteId};
use tch::Tensor;

use super::Config;
use crate::adapter::SiteMethod;
use crate::adapter::common::{Dropout, linear_delta};
use crate::plan::Plan;

struct Lora {
    a: Tensor, // [r, in]
    b: Tensor, // [out, r]
    scaling: f64,
    dropout: Dropout,
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
            dropout: Dropout::new(config.lora_dropout, key, "lora_dropout", path),
        };
        Ok((*id, Box::new(hook) as Box<dyn SiteMethod>))
    };
    plan.sites.iter().map(hook).collect()
}

impl SiteHook for Lora {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let input = self.dropout.apply(cx, &x[0]); // [.., in]
        let delta = input.linear(&self.a, None::<&Tensor>).linear(&self.b, None::<&Tensor>) * self.scaling; // [.., out]
        y.iter().map(|y| (y + &delta).to_kind(y.kind())).collect()
    }
}

impl SiteMethod for Lora {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        let delta = self.b.matmul(&self.a) * self.scaling; // [out, in]
        Some(linear_delta(site, base, &delta))
    }
}
