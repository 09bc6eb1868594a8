//! Adapters beside each other: each sees the model's own input, and what each changes is added,
//! `y = f(x) + sum_i g_i (a_i(x) - f(x))`, with `g_i = 1` or a trained gate.
//!
//! AdapterHub's `Parallel` makes the batch as many times larger as there are adapters and gives each its own output. That
//! is what several tasks of one job do here: they share one run of the frozen model. This composition is what AdapterHub
//! calls a union of configurations. Mix-and-match adapters are `prefix` and `bottleneck` with `preset: par_bn`; UniPELT
//! is `lora`, `prefix` and `bottleneck` with `use_gating` (docs/jobs/mam.yaml, docs/jobs/unipelt.yaml).
//!
//! He et al., *Towards a Unified View of Parameter-Efficient Transfer Learning*, 2021; Mao et al., *UniPELT*, 2022.

use super::compose::{self, Child};
use super::prelude::*;
use super::stack::ROLES;

/// Options of adapters beside each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The adapters: each with `name`, `method`, the method's options, and perhaps `init_from` (a local folder of a saved
    /// adapter) and `frozen`.
    pub adapters: Vec<Child>,
    /// A trained gate between 0 and 1 for what each adapter changes at each site, the mean over a sequence's tokens.
    pub use_gating: bool,
}

const GATE: [&str; 2] = ["gate.weight", "gate.bias"];

/// Width of a site's first input, heads taken together.
fn width(site: &Site) -> usize {
    match (site.role, site.dims.heads) {
        (Role::AttnKv, Some(heads)) => heads.query * heads.dim,
        _ => site.dims.input,
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "parallel",
        title: "Adapters in parallel",
        summary: "Several adapters on the same input; what each changes is added.",
        formula: "`y = f(x) + sum_i g_i (a_i(x) - f(x))`, `g_i` one or a trained gate.",
        paper: "He et al., 2021 (arXiv:2110.04366); Mao et al., UniPELT, 2022 (arXiv:2110.07577)",
        roles: ROLES,
        sample_job: sample_job!(
            "parallel",
            ", adapters: [{name: front, method: prefix, num_virtual_tokens: 30}, {name: side, method: bottleneck, preset: par_bn}]"
        ),
        invalid: &[
            Invalid { options: r#"{"adapters": []}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora", "r": 0}]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"use_gating": true, "adapters": [{"name": "a", "method": "prompt", "num_virtual_tokens": 2}]}"#,
                code: code::METHOD_CONFIG,
            },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"adapters": [{"name": "a", "method": "lora", "r": 2},
        {"name": "b", "method": "lora", "r": 3, "target_modules": "all-linear"}]}"#;

    fn validate(&self) -> Result<()> {
        compose::validate(&self.adapters)
    }

    fn imported(self) -> Self {
        Self { adapters: self.adapters.into_iter().map(Child::read).collect(), ..self }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let mut plan = compose::plan(&self.adapters, false, model)?;
        if !self.use_gating {
            return Ok(plan);
        }
        let mut gates = Vec::new();
        for (child, own) in self.adapters.iter().zip(&plan.children) {
            for id in &own.sites {
                let site = &model.sites()[*id];
                if matches!(site.role, Role::Embed | Role::AttnScores | Role::Conv) {
                    let why = format!("`{}` acts on `{}`, whose input a gate cannot read", child.name, site.path);
                    return Err(refuse("use_gating", &why));
                }
                let shapes =
                    [(GATE[0], vec![1, width(site)], Init::Normal { std: 0.02 }), (GATE[1], vec![1], Init::Zeros)];
                gates.extend(shapes.map(|(part, shape, init)| {
                    PlannedTensor::trained(compose::gate_name(&child.name, site, part), *id, part, shape, init)
                }));
            }
        }
        let whole =
            plan.tensors.iter().position(|tensor| plan.saved.contains(&tensor.site)).unwrap_or(plan.tensors.len());
        plan.tensors.splice(whole..whole, gates);
        Ok(plan)
    }

    compose::passed_on! {}

    compose::begins_and_regularises! {}

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        compose::hooks(&self.adapters, parts, |id| {
            let acting = parts.plan.children.iter().filter(|own| own.sites.contains(&id)).count();
            if acting == 1 && !self.use_gating {
                return Ok(None);
            }
            let site = parts.site(id);
            let gate = |child: &Child| {
                let get =
                    |part| parts.get(&compose::gate_name(&child.name, site, part)).map(tch::Tensor::shallow_clone).ok();
                Some((get(GATE[0])?, get(GATE[1])?))
            };
            Ok(Some(compose::Join::Sum(self.adapters.iter().map(gate).collect())))
        })
    }
}
