//! The backbone's own weights as trained parameters: pretraining, full fine-tuning, a head alone, biases alone. An adapter like
//! any other, and no method of the registry: it needs no file.

use pleach_base::Result;
use pleach_methods::{
    AdapterConfig, Card, Export, HasCard, Hooks, MethodKind, Parts, Plan, PlannedTensor, SiteMethod, Status,
};
use pleach_nn::{BackboneConfig, BaseOp, Init, OpWeights, Role, Site, SiteCx, SiteHook};
use serde_json::{Map, Value};
use tch::Tensor;

/// Trains weights in place of the frozen ones.
#[derive(Clone, Copy, Debug)]
pub struct StandIn {
    weights: fn(&Site) -> bool,
    biases: fn(&Site) -> bool,
}

impl StandIn {
    /// Weights and biases at the sites that are chosen by each.
    #[must_use]
    pub const fn new(weights: fn(&Site) -> bool, biases: fn(&Site) -> bool) -> Self {
        Self { weights, biases }
    }

    /// All of them.
    #[must_use]
    pub const fn whole() -> Self {
        Self::new(|_| true, |_| true)
    }

    /// The map that makes the output.
    #[must_use]
    pub const fn head() -> Self {
        Self::new(is_head, is_head)
    }

    /// Every bias, and the map that makes the output.
    #[must_use]
    pub const fn biases() -> Self {
        Self::new(is_head, |_| true)
    }
}

fn is_head(site: &Site) -> bool {
    site.role == Role::Head
}

const CARD: &Card = &Card {
    name: "stand_in",
    kind: MethodKind::Adapter,
    title: "Weights of the model",
    summary: "Trains weights of the model itself.",
    formula: "`y = W x + b` with trained `W` and `b`.",
    paper: "none",
    status: Status::Experimental,
    roles: &[],
    sync: &[],
    mergeable: true,
    identity_at_init: true,
    peft_type: None,
    sample_job: "",
    invalid: &[],
};

impl HasCard for StandIn {
    fn card(&self) -> &'static Card {
        CARD
    }
}

impl AdapterConfig for StandIn {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = Plan::default();
        for site in model.sites().iter().filter(|site| site.runs) {
            let Some(weight) = &site.weight else { continue };
            let mut own = Vec::new();
            if (self.weights)(site) {
                own.push((weight.name.clone(), "weight", weight.shape.clone()));
            }
            if let Some(bias) = site.bias.as_ref().filter(|_| (self.biases)(site)) {
                own.push((bias.clone(), "bias", vec![site.dims.output]));
            }
            if !own.is_empty() {
                plan.sites.push(site.id);
            }
            // Tied modules share a tensor.
            own.retain(|(name, ..)| plan.named(name).is_none());
            plan.tensors.extend(
                own.into_iter()
                    .map(|(name, part, shape)| PlannedTensor::trained(name, site.id, part, shape, Init::Base)),
            );
        }
        Ok(plan)
    }

    fn adapter_config(&self, _: &dyn BackboneConfig, _: &Plan, _: &Export<'_>) -> Map<String, Value> {
        Map::new()
    }

    fn hooks(&self, parts: &Parts<'_>) -> Result<Hooks> {
        let mut hooks = Hooks::new();
        for id in &parts.plan.sites {
            let site = parts.site(*id);
            let of = |name: &str| parts.get(name).ok().map(Tensor::shallow_clone);
            let weight = site.weight.as_ref().and_then(|weight| of(&weight.name));
            let own = Own { weight, bias: site.bias.as_deref().and_then(of) };
            hooks.insert(*id, Box::new(own));
        }
        Ok(hooks)
    }
}

/// What stands in at a site.
struct Own {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Own {
    fn over(&self, frozen: &OpWeights) -> OpWeights {
        let of = |own: &Option<Tensor>, frozen: &Tensor| own.as_ref().unwrap_or(frozen).shallow_clone();
        let weight = of(&self.weight, &frozen.weight);
        OpWeights { weight, bias: frozen.bias.as_ref().map(|bias| of(&self.bias, bias)) }
    }
}

impl SiteHook for Own {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        match base.weights() {
            Some(frozen) => base.run_with(&self.over(frozen), &x),
            None => base.run(&x),
        }
    }
}

impl SiteMethod for Own {
    fn merged(&self, _: &Site, base: &OpWeights) -> Option<OpWeights> {
        let OpWeights { weight, bias } = self.over(base);
        Some(OpWeights { weight: weight.detach().copy(), bias: bias.map(|bias| bias.detach().copy()) })
    }
}
