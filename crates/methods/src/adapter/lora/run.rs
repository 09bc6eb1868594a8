//! LoRA at one site.

use pleach_base::Result;
use pleach_nn::{OpWeights, Site, SiteCx, SiteHook, SiteId};
use tch::Tensor;

use super::Config;
use crate::adapter::common::{Dropout, linear_delta};
use crate::adapter::{Hooks, Parts, SiteMethod};

struct Lora {
    a: Tensor, // [r, in]
    b: Tensor, // [out, r]
    scaling: f64,
    dropout: Dropout,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    let hook = |id: &SiteId| {
        let path = &parts.site(*id).path;
        let hook = Lora {
            a: parts.part(*id, "lora_A")?.shallow_clone(),
            b: parts.part(*id, "lora_B")?.shallow_clone(),
            scaling: config.scaling(path)?,
            dropout: Dropout::new(config.lora_dropout, parts.key, "lora_dropout", path),
        };
        Ok((*id, Box::new(hook) as Box<dyn SiteMethod>))
    };
    parts.plan.sites.iter().map(hook).collect()
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
