//! A mixture of factors at a linear map.

use pleach_base::{Result, code};
use pleach_nn::{OpWeights, Site, SiteCx, SiteHook};
use tch::Tensor;

use super::places;
use crate::adapter::common::linear_delta;
use crate::adapter::poly::Config;
use crate::adapter::poly::routing::Skills;
use crate::adapter::poly::run::{Routing, routers};
use crate::adapter::{Hooks, Parts, SiteMethod};

struct Mixed {
    /// Those that act here.
    experts: Vec<Option<Box<dyn SiteMethod>>>,
    /// Parts of input and output.
    parts: i64,
    routing: Routing,
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>, mut experts: Vec<Hooks>) -> Result<Hooks> {
    let routers = routers(config, parts);
    let mut hooks = Hooks::new();
    for place in places::of(parts.plan, parts.sites, false)? {
        let site = parts.site(place.site);
        let experts: Vec<_> = experts.iter_mut().map(|hooks| hooks.remove(&place.site)).collect();
        let other = |expert: &Option<Box<dyn SiteMethod>>| expert.as_ref().is_some_and(|hook| hook.low_rank().is_none());
        if let Some(at) = experts.iter().position(other) {
            let why = format!("experts[{at}]: does more at `{}` than add the product of two factors", site.path);
            return Err(code::METHOD_CONFIG.error(why).hint("experts of this router are plain LoRA"));
        }
        let routing = Routing::at(config, parts, &routers, site)?;
        let mixed = Mixed { experts, parts: i64::from(config.n_splits), routing };
        hooks.insert(site.id, Box::new(mixed) as Box<dyn SiteMethod>);
    }
    Ok(hooks)
}

impl Mixed {
    /// The factors of all experts as skills: what they are now, since trained ones move and those of tasks of the job come
    /// late.
    fn skills(&self) -> Option<Skills> {
        let pairs: Vec<_> = self.experts.iter().map(|hook| hook.as_ref()?.low_rank()).collect();
        let like = pairs.iter().flatten().next()?;
        let absent = (like.0.zeros_like().detach(), like.1.zeros_like().detach());
        let of = |pair: &Option<(Tensor, Tensor)>| {
            let (a, b) = pair.as_ref().unwrap_or(&absent);
            // Parts lie over the input of `A` and the output of `B`.
            let a = a.tr().unflatten(0, [self.parts, -1]); // [q, in / q, r]
            (a, b.unflatten(0, [self.parts, -1]).transpose(1, 2)) // [q, r, out / q]
        };
        let (a, b): (Vec<_>, Vec<_>) = pairs.iter().map(of).unzip();
        Some(Skills { a: Tensor::stack(&a, 1), b: Tensor::stack(&b, 1), scale: 1.0 })
    }
}

impl SiteHook for Mixed {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        let Some(skills) = self.skills() else { return y };
        let added = self.routing.added(cx, &skills, &x[0]);
        y.iter().map(|y| (y + &added).to_kind(y.kind())).collect()
    }
}

impl SiteMethod for Mixed {
    fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
        let _no_grad = tch::no_grad_guard();
        Some(linear_delta(site, base, &self.routing.delta(&self.skills()?)?))
    }

    fn adds(&self) -> bool {
        true
    }
}
