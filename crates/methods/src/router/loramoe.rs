//! LoRAMoE: at every linear map of the experts a router of its own weighs all of them,
//! `y = W x + sum_e softmax(R x)_e (expert_e(x) - W x)`.
//!
//! `blc_weight` keeps the experts in balance: for each map the squared coefficient of variation of `sum_tokens share_e`
//! over all sequences and experts of the global batch, as LoRAMoE has it for rows of one type. The preference of a type for
//! half of the experts (`blc_alpha`) needs types, which rows do not have here.
//!
//! Dou et al., *LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin*, 2024.

use super::{Experts, RouterOptions, losses, places, stats};
use crate::adapter::Routing;
use crate::adapter::common::{options, usual_init};
use crate::adapter::prelude::*;
use crate::card::{MethodKind, Status};

options! {
    /// Options of LoRAMoE.
    pub struct Config {
        /// Who the experts are, and what is trained.
        #[serde(flatten)]
        experts: Experts = Experts::default(),
        /// Weight of the balance loss.
        blc_weight: f64 = 0.0,
    }
}

impl RouterOptions for Config {
    const CARD: &'static Card = &Card {
        name: "loramoe",
        kind: MethodKind::Router,
        title: "LoRAMoE",
        summary: "Weighs all experts for every token, map by map.",
        formula: "`y = W x + sum_e softmax(R x)_e delta_e(x)` at every linear map of the experts.",
        paper: "Dou et al., LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin, \
                2024 (arXiv:2312.09979)",
        status: Status::Experimental,
        roles: &[Role::Linear, Role::Head],
        sync: &[Sync::MeanGrads, Sync::SyncStats],
        mergeable: false,
        sample_job: include_str!("loramoe.yaml"),
        invalid: &[
            Invalid { options: r#"{"num_experts": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"blc_weight": -0.1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"blc_alpha": 0.1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"num_experts": 3}"#;

    fn experts(&self) -> &Experts {
        &self.experts
    }

    fn validate(&self) -> Result<()> {
        match self.blc_weight.is_finite() && self.blc_weight >= 0.0 {
            true => Ok(()),
            false => Err(refuse("blc_weight", "must be at least 0")),
        }
    }

    fn plan(&self, model: &dyn BackboneConfig, plan: &Plan, experts: usize) -> Result<Plan> {
        places::routers(plan, model, experts, false, |site| usual_init(site.dims.input))
    }

    fn sums(&self, plan: &Plan, experts: usize) -> Option<[usize; 2]> {
        let routers = plan.tensors.iter().filter(|tensor| tensor.part == places::WEIGHT).count();
        Some([routers, losses::width(experts) + losses::SPREAD])
    }

    fn couples(&self) -> bool {
        self.blc_weight != 0.0
    }

    fn routing(&self, plan: &Plan, experts: &[String], sums: &[f64]) -> Option<Routing> {
        Some(stats::of(plan, experts, sums, losses::width(experts.len()) + losses::SPREAD))
    }

    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: Vec<crate::adapter::Hooks>,
    ) -> Result<crate::adapter::Hooks> {
        use super::routed::{Gate, Rule};
        super::routed::hooks(parts, experts, false, Gate { rule: Rule::All, noise: 0.0, parallel: false })
    }

    #[cfg(feature = "torch")]
    fn batch_loss(&self, sums: &tch::Tensor) -> Option<tch::Tensor> {
        self.couples().then(|| losses::spread_loss(sums) * self.blc_weight)
    }
}
