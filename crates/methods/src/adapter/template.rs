//! Gain: `y = (1 + g) * (W x + b)` with a trained vector `g` of the output's width, which begins at zero.
//!
//! Attaches to linear maps, by default to the queries and values of attention. The product is float32 and is rounded to
//! the base's precision. Deviates from no paper: it is the worked example of docs/adding-a-method.md.

use super::common::{Selection, own_config, query_value};
use super::prelude::*;
use crate::card::Status;

/// Options of Gain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Modules.
    #[serde(flatten)]
    pub targets: Targets,
    /// What the trained vector is multiplied with.
    pub strength: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { targets: Targets::default(), strength: 1.0 }
    }
}

const ROLES: &[Role] = &[Role::Linear, Role::Head];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "gain",
        title: "Gain",
        summary: "Scales the results of linear maps by a trained vector.",
        formula: "`y = (1 + strength * g) * (W x + b)`; `g` begins at zero.",
        paper: "none: an example",
        status: Status::Experimental,
        roles: ROLES,
        sample_job: sample_job!("gain", ", target_modules: all-linear"),
        invalid: &[
            Invalid { options: r#"{"strength": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        let usable = self.strength.is_finite() && self.strength != 0.0;
        if usable { Ok(()) } else { Err(refuse("strength", "must be a number other than 0")) }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let selection = Selection { targets: &self.targets, layers: None, roles: ROLES, default: query_value };
        selection.plan(model, |site| Ok([parameter(site, "gain", [site.dims.output], Init::Zeros)]))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::Result;
    use pleach_nn::{OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::Config;
    use crate::adapter::common::{at_sites, dense, restored};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    struct Gain {
        g: Tensor, // [out]
        strength: f64,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        at_sites(parts, |site| Ok(Gain { g: parts.part(site.id, "gain")?.shallow_clone(), strength: config.strength }))
    }

    impl Gain {
        fn factor(&self) -> Tensor {
            &self.g * self.strength + 1.0
        }
    }

    impl SiteHook for Gain {
        // Only looks at the result: all adapters of the batch share one run of the frozen map.
        fn after(&self, _: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            y.iter().map(|y| (y.to_kind(Kind::Float) * self.factor()).to_kind(y.kind())).collect()
        }
    }

    impl SiteMethod for Gain {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let weight = restored(site, &(dense(site, base) * self.factor().unsqueeze(1))); // [out, in]
            let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float) * self.factor());
            Some(OpWeights { weight, bias })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_named_when_it_is_refused() {
        let error = Config { strength: 0.0, ..Config::default() }.validate().unwrap_err();
        assert_eq!(error.message(), "strength: must be a number other than 0");
    }
}
