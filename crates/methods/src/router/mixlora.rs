//! MixLoRA: a token-level mixture of experts. In every feed-forward part, `y = sum_k g_k FFN_{e_k}(u)`: one frozen part
//! with the adapters of expert `e_k` in it, gates `g` from `softmax(W u)` over the chosen.
//!
//! `mixlora` takes the `top_k` likeliest experts and divides their gates by their sum; `mixlora-dynamic` takes the nucleus
//! `top_p` and leaves the gates as they are, so that a new mixture is not yet the frozen model. No expert has a capacity,
//! no token is dropped. Where experts act at linear maps outside of feed-forward parts, each of these has a router of
//! its own: `y = W x + sum_k g_k (expert_{e_k}(x) - W x)`, and jitter is what the router sees alone. Balance and z losses
//! are taken over the real tokens of all routers and of the whole global batch, by `losses`; MixLoRA's nucleus counts
//! padding too.
//!
//! Li et al., *MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts*, 2024.

use pleach_nn::Init;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::losses::{self, Coefficients};
use super::{Experts, RouterOptions, places, stats};
use crate::adapter::Routing;
use crate::adapter::common::options;
use crate::adapter::prelude::*;
use crate::card::{MethodKind, Status};

options! {
    /// Options of MixLoRA.
    pub struct Config {
        /// Who the experts are, and what is trained.
        #[serde(flatten)]
        experts: Experts = Experts::default(),
        /// How a token chooses.
        routing_strategy: Strategy = Strategy::TopK,
        /// Experts of a token, with `mixlora`.
        top_k: u32 = 2,
        /// Sum of shares that a token's experts exceed, with `mixlora-dynamic`.
        top_p: f64 = 0.8,
        /// Divisor of the shares, with `mixlora-dynamic`; 0 for none.
        temperature: f64 = 0.0,
        /// In training inputs are multiplied with numbers between 1 less this and 1 more.
        jitter_noise: f64 = 0.0,
        /// Weight of the balance loss.
        router_aux_loss_coef: f64 = 0.001,
        /// Weight of the z loss.
        router_z_loss_coef: f64 = 0.0,
        /// Standard deviation of a new router's weights.
        router_init_range: f64 = 0.02,
        /// Every rank computes some of the experts for the rows of all ranks. Not in strict mode: sums are rounded in
        /// another order.
        expert_parallel: bool = false,
    }
}

/// How a token chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// The `top_k` likeliest.
    #[serde(rename = "mixlora")]
    TopK,
    /// The nucleus `top_p`.
    #[serde(rename = "mixlora-dynamic")]
    TopP,
}

impl RouterOptions for Config {
    const CARD: &'static Card = &Card {
        name: "mixlora",
        kind: MethodKind::Router,
        title: "MixLoRA",
        summary: "Gives every token a few of many experts, which share the frozen feed-forward part.",
        formula: "`y = sum_k g_k FFN_{e_k}(u)`, `g` from `softmax(W u)`; at other linear maps `y = W x + sum_k g_k delta_{e_k}(x)`.",
        paper: "Li et al., MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts, 2024 \
                (arXiv:2404.15159)",
        status: Status::Experimental,
        roles: &[Role::FeedForward, Role::Linear, Role::Head],
        sync: &[Sync::MeanGrads, Sync::SyncStats, Sync::ExchangeExperts],
        mergeable: false,
        sample_job: include_str!("mixlora.yaml"),
        invalid: &[
            Invalid { options: r#"{"num_experts": 1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_experts": 3, "top_k": 4}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"top_k": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"routing_strategy": "mixlora-dynamic", "top_p": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"routing_strategy": "mixlora-switch"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"jitter_noise": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"router_aux_loss_coef": -1}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"train": "router"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"capacity": 2}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    // Every expert gets tokens on every tiny model: tests of all methods ask for a gradient of every parameter.
    const EXAMPLE: &'static str = r#"{"num_experts": 3, "top_k": 3, "router_init_range": 0.2}"#;

    fn experts(&self) -> &Experts {
        &self.experts
    }

    fn validate(&self) -> Result<()> {
        positive("top_k", self.top_k)?;
        if self.experts.experts.is_some() || self.experts.num_experts.is_some() {
            let count = self.experts.count();
            if self.top_k as usize > count {
                return Err(refuse("top_k", &format!("a token cannot have {} of {count} experts", self.top_k)));
            }
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(refuse("top_p", "must be above 0 and at most 1"));
        }
        share("jitter_noise", self.jitter_noise)?;
        let not_negative = [
            ("temperature", self.temperature),
            ("router_aux_loss_coef", self.router_aux_loss_coef),
            ("router_z_loss_coef", self.router_z_loss_coef),
            ("router_init_range", self.router_init_range),
        ];
        match not_negative.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((field, _)) => Err(refuse(field, "must be at least 0")),
            None => Ok(()),
        }
    }

    fn plan(&self, model: &dyn BackboneConfig, plan: &Plan, experts: usize) -> Result<Plan> {
        if self.top_k as usize > experts {
            return Err(refuse("top_k", &format!("a token cannot have {} of {experts} experts", self.top_k)));
        }
        let reads = &model.info().reads;
        let text = reads.second.is_none() && reads.first.fixed_tokens().is_none();
        if self.expert_parallel && !text {
            return Err(refuse("expert_parallel", "only for models of one stack that read tokens"));
        }
        places::routers(plan, model, experts, true, |_| Init::Normal { std: self.router_init_range as f32 })
    }

    fn sums(&self, plan: &Plan, experts: usize) -> Option<[usize; 2]> {
        Some([plan.tensors.iter().filter(|tensor| tensor.part == places::WEIGHT).count(), losses::width(experts)])
    }

    fn couples(&self) -> bool {
        self.router_aux_loss_coef != 0.0 || self.router_z_loss_coef != 0.0
    }

    fn exchanges(&self) -> bool {
        self.expert_parallel
    }

    fn routing(&self, plan: &Plan, experts: &[String], sums: &[f64]) -> Option<Routing> {
        Some(stats::of(plan, experts, sums, losses::width(experts.len())))
    }

    #[cfg(feature = "torch")]
    fn hooks(
        &self,
        parts: &crate::adapter::Parts<'_>,
        experts: Vec<crate::adapter::Hooks>,
    ) -> Result<crate::adapter::Hooks> {
        super::routed::hooks(parts, experts, true, self.gate())
    }

    #[cfg(feature = "torch")]
    fn batch_loss(&self, sums: &tch::Tensor) -> Option<tch::Tensor> {
        let coefficients = self.coefficients();
        let all = sums.sum_dim_intlist([0i64].as_slice(), false, None::<tch::Kind>);
        self.couples().then(|| losses::loss(&all, coefficients))
    }
}

impl Config {
    /// How its routers choose.
    #[cfg(feature = "torch")]
    pub(crate) fn gate(&self) -> super::routed::Gate {
        use super::routed::{Gate, Rule};
        let rule = match self.routing_strategy {
            Strategy::TopK => Rule::TopK(i64::from(self.top_k)),
            Strategy::TopP => Rule::TopP { top_p: self.top_p, temperature: self.temperature },
        };
        Gate { rule, noise: self.jitter_noise, parallel: self.expert_parallel }
    }

    /// The weights of its losses.
    #[cfg_attr(not(feature = "torch"), allow(dead_code))]
    pub(crate) fn coefficients(&self) -> Coefficients {
        Coefficients { balance: self.router_aux_loss_coef, z: self.router_z_loss_coef }
    }
}
