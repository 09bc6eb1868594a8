//! MHR as a router: each task of rows has a learned mixture of the LoRA adapters of a list, or of new copies of one.
//!
//! With the factors `A_e` `[r, in]` and `B_e` `[out, r]` of expert `e`, whose scale is in `B_e`, and the logits `Z` of a
//! row's task, for each of `n_splits` parts of input and output: `w = sigmoid(Z) / sum_e sigmoid(Z)`,
//! `A_t = cat sum_e w A_e` over the input, `B_t = cat sum_e w B_e` over the output, `y = W x + b + B_t A_t x`. Factors are
//! averaged, not results, as by the adapter `poly`, whose options of the routing these are; an expert that does not act at
//! a map counts with factors of zero. One part is Poly, more are MHR.
//!
//! Experts of a list stay as they are, and the logits alone are trained (MHR-z): a new task learns which of what is there
//! it needs. With `train: all` the experts are trained beside, as the copies are. Experts must be LoRA of one rank at each
//! map, and add nothing else there; their dropout is not applied.
//!
//! Ponti, Sordoni, Bengio, Reddy, *Combining Parameter-efficient Modules for Task-level Generalisation*, 2023; Caccia,
//! Ponti, Su, Pereira, Le Roux, Sordoni, *Multi-Head Adapter Routing for Cross-Task Generalization*, 2023.

#[cfg(feature = "torch")]
mod run;

use std::collections::BTreeSet;

use pleach_spec::job::RowTasks;

use super::{Experts, RouterOptions, places};
use crate::adapter::Owner;
use crate::adapter::poly::{self, Granularity, TaskRef, bin};
use crate::adapter::prelude::*;
use crate::card::{MethodKind, Status};

/// Parts of an expert's tensors at a map.
const FACTORS: [&str; 2] = ["lora_A", "lora_B"];

options! {
    /// Options of MHR over adapters.
    pub struct Config {
        /// Who the experts are, and what is trained.
        #[serde(flatten)]
        experts: Experts = Experts::default(),
        /// Parts that input and output are cut into, each with a mixture of its own: 1 is Poly, more are MHR.
        n_splits: u32 = 1,
        /// Tasks that rows may name by number; not needed beside `task_names`.
        n_tasks: u32 = 1,
        /// Names of the tasks, in the order of their numbers, for rows that name them so.
        task_names: Vec<String> = Vec::new(),
        /// Which linear maps share one set of logits: `finegrained` (none), `layerwise` (those of one attention or
        /// feed-forward part), `blockwise`, `coderwise` (encoder and decoder), `coarsegrained` (all).
        router_granularity: Granularity = Granularity::Finegrained,
        /// Draw the experts of each sample in training from a relaxed Bernoulli distribution of temperature 1.
        module_logits_relaxed_bernoulli: bool = false,
        /// Use rounded values in the forward pass, the gradient of those before rounding in the backward pass.
        module_logits_straight_through: bool = false,
        /// Weights are the logits divided by their norm, and may be negative.
        module_logits_l2_norm: bool = false,
        /// Share of experts that are dropped for a sample in training, before weights are made to add up to 1.
        module_logits_dropout: f64 = 0.0,
        /// Every task has the last expert of each part in full.
        poly_use_shared_skill: bool = false,
        /// Multiply by the root of `n_splits` over the number of experts instead of making weights add up to 1.
        poly_average_correction: bool = false,
        /// Learning rate of the logits when that of the experts is `adapters_learning_rate`: the optimiser's `lr` is that
        /// of the experts, trained or not, and the quotient of the two its multiple for the logits.
        module_logits_learning_rate: f64 = 0.1,
        /// See `module_logits_learning_rate`.
        adapters_learning_rate: f64 = 1e-3,
        /// The task whose mixture is merged into a model, where there are several: a number or a name.
        export_task: Option<TaskRef> = None,
    }
}

impl RouterOptions for Config {
    const CARD: &'static Card = &Card {
        name: "mhr",
        kind: MethodKind::Router,
        title: "MHR over adapters",
        summary: "Mixes the factors of LoRA experts for each task of rows by learned, normalised weights.",
        formula: "`y = W x + b + B_t A_t x`, `A_t` and `B_t` the averages of the experts' factors with the weights \
                  `sigmoid(Z_t) / sum sigmoid(Z_t)` of the row's task, for each of `n_splits` parts of input and output.",
        paper: "Ponti et al., Combining Parameter-efficient Modules for Task-level Generalisation, 2023 \
                (arXiv:2202.13914); Caccia et al., Multi-Head Adapter Routing for Cross-Task Generalization, 2023 \
                (arXiv:2211.03831)",
        status: Status::Experimental,
        roles: &[Role::Linear, Role::Head],
        sync: &[Sync::MeanGrads, Sync::PerTaskGroups],
        sample_job: include_str!("sample.yaml"),
        invalid: &[
            Invalid { options: r#"{"num_experts": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_splits": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_splits": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_tasks": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_tasks": 2, "task_names": ["a", "b", "c"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"task_names": ["a", "a"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"task_names": ["a", "b"], "export_task": "c"}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"module_logits_relaxed_bernoulli": true, "module_logits_straight_through": true}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"module_logits_l2_norm": true, "module_logits_dropout": 0.1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"module_logits_dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"module_logits_learning_rate": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"train": "router"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"n_skills": 4}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"num_experts": 3, "n_splits": 2}"#;

    fn experts(&self) -> &Experts {
        &self.experts
    }

    fn validate(&self) -> Result<()> {
        self.poly(self.experts.count()).check()
    }

    fn plan(&self, model: &dyn BackboneConfig, plan: &Plan, experts: usize) -> Result<Plan> {
        let poly = self.poly(experts);
        let (mut own, mut bins) = (Plan::default(), BTreeSet::new());
        for place in places::of(plan, model.sites(), false)? {
            let site = &model.sites()[place.site];
            check_factors(plan, site)?;
            poly::plan::divides(&poly, site)?;
            if bins.insert(bin(self.router_granularity, site)) {
                own.tensors.push(poly::plan::logits(&poly, site));
            }
            own.sites.push(site.id);
        }
        Ok(own)
    }

    fn row_tasks(&self) -> Option<RowTasks> {
        self.poly(self.experts.count()).row_tasks()
    }

    fn owner(&self, tensor: &PlannedTensor) -> Owner {
        self.poly(self.experts.count()).owner(tensor)
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        self.poly(self.experts.count()).lr_scale(tensor)
    }

    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: Vec<crate::adapter::Hooks>,
    ) -> Result<crate::adapter::Hooks> {
        run::hooks(&self.poly(experts.len()), parts, experts)
    }
}

impl Config {
    /// The same routing over an inventory of so many skills.
    fn poly(&self, experts: usize) -> poly::Config {
        poly::Config {
            n_skills: u32::try_from(experts).unwrap_or(u32::MAX),
            n_splits: self.n_splits,
            n_tasks: self.n_tasks,
            task_names: self.task_names.clone(),
            router_granularity: self.router_granularity,
            module_logits_relaxed_bernoulli: self.module_logits_relaxed_bernoulli,
            module_logits_straight_through: self.module_logits_straight_through,
            module_logits_l2_norm: self.module_logits_l2_norm,
            module_logits_dropout: self.module_logits_dropout,
            poly_use_shared_skill: self.poly_use_shared_skill,
            poly_average_correction: self.poly_average_correction,
            module_logits_learning_rate: self.module_logits_learning_rate,
            adapters_learning_rate: self.adapters_learning_rate,
            export_task: self.export_task.clone(),
            ..poly::Config::default()
        }
    }
}

/// Refuses experts that have more than two factors at a site, or factors of different ranks, which have no average.
///
/// # Errors
/// `METHOD_CONFIG`.
fn check_factors(plan: &Plan, site: &Site) -> Result<()> {
    let mut rank = None;
    for (expert, own) in plan.children.iter().enumerate().filter(|(_, own)| own.sites.contains(&site.id)) {
        let refused = |why: &str| refuse(&format!("experts[{expert}]"), &format!("{why} at `{}`", site.path));
        let Some(a) = FACTORS.map(|part| own.part(site.id, part)).into_iter().collect::<Option<Vec<_>>>() else {
            return Err(refused("has no factors of LoRA").hint("experts of this router are LoRA"));
        };
        if own.tensors.iter().filter(|tensor| tensor.site == site.id).count() > FACTORS.len() {
            return Err(refused("does more than add the product of two factors")
                .hint("experts of this router are LoRA without biases and magnitudes"));
        }
        let r = a[0].shape[0];
        if let Some(other) = rank.replace(r).filter(|other| *other != r) {
            return Err(refused(&format!("is of rank {r}, one before it of rank {other},"))
                .hint("factors have an average when they are of one rank: name experts of one rank"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pleach_nn::SiteId;

    use super::*;
    use crate::adapter::poly::LOGITS;

    #[test]
    fn the_routing_is_that_of_the_adapter() {
        let config: Config = serde_json::from_str(
            r#"{"n_splits": 2, "task_names": ["a", "b"], "module_logits_learning_rate": 0.5, "export_task": "b"}"#,
        )
        .unwrap();
        let poly = config.poly(3);
        assert_eq!((poly.n_skills, poly.n_splits, poly.tasks(), poly.chosen()), (3, 2, 2, Some(1)));
        let tensor = PlannedTensor::trained(String::new(), SiteId(0), LOGITS, [2, 6], Init::Zeros);
        assert_eq!((config.lr_scale(&tensor), config.owner(&tensor)), (500.0, Owner::EachRow));
        assert_eq!(config.row_tasks().unwrap().names, ["a", "b"]);
        assert!(Config::default().row_tasks().is_none(), "of one task rows say nothing");
    }
}
