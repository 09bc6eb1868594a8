//! p-Adapter: a gated bottleneck behind attention's output projection, fed by one step of p-Laplacian message passing on
//! the graph that attention's weights are, and a parallel bottleneck at the feed-forward part.
//!
//! With `y = Wo c + b` of the context `c`: nodes go through the same frozen projection, `F = W_i (Wo V + b) + b_i`, split
//! in heads; `F~` is a step of `graph::Laplacian` with attention's weights; `g = GELU(W_g y + b_g)`, and the result is
//! `y + W_o (g * F~) + b_o`. In attention of a sequence on itself nodes are its values. In attention on an encoder's output
//! queries and values are two sides, values and weights are averaged over `image_sample_len` bins first, and the term of a
//! node itself is left out as the released code does (`cross_beta`). `p` and `m` are trained numbers of each site,
//! `mu = mu0 (2 + tanh(m))`, and `p` is kept within 1 and 3 after each step. Beside it the residual `r` of the feed-forward
//! part becomes `r + U ReLU(D r)`.
//!
//! `W_o` and `U` begin at zero (`zero_init_out`), which leaves the model unchanged; the released code draws them. Values
//! of an encoder are averaged over each sequence's own real tokens, and not at all where there are fewer than bins.
//! Everything is float32 whatever the base is. Differences between nodes take `queries * values * d'` numbers a sequence.
//!
//! Wu, Zhang, Xu, Liao, Yao, Yu, *p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models*, 2024.

#[cfg(feature = "torch")]
pub(crate) mod graph;
#[cfg(feature = "torch")]
pub(crate) mod module;
mod plan;
#[cfg(feature = "torch")]
mod run;
#[cfg(test)]
mod tests;

use super::common::{own_config, positive_number};
use super::prelude::*;

options! {
    /// Options of p-Adapter.
    pub struct Config {
        /// Width of the hidden states divided by that of the bottleneck.
        reduction_factor: u32 = 8,
        /// First exponent in attention of a sequence on itself.
        p_self: f64 = 1.5,
        /// First exponent in attention on an encoder's output.
        p_cross: f64 = 1.5,
        /// Train the exponents.
        learnable_p: bool = true,
        /// How much of a node itself stays; trained between this and three times this.
        mu: f64 = 0.1,
        /// Bins over which an encoder's values are averaged.
        image_sample_len: u32 = 16,
        /// The term of the node itself in attention on an encoder: `drop`, or that of the `query`.
        cross_beta: CrossBeta = CrossBeta::Drop,
        /// What keeps lengths from being zero.
        eps: f64 = 1e-8,
        /// Width of the hidden states divided by that of the bottleneck at the feed-forward part; `false` for none there.
        ffn_adapter_reduction_factor: Ffn = Ffn::Factor(8),
        /// Begin with last maps at zero.
        zero_init_out: bool = true,
        /// Which attention: `self`, `cross` or `both`. In models with attention on an encoder only the stack that has it
        /// is adapted, unless modules are named.
        sites: Attention = Attention::Both,
        /// Modules: they must be output projections of attention.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
    }
}

/// `ffn_adapter_reduction_factor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Ffn {
    /// A factor.
    Factor(u32),
    /// `false` for no bottleneck there.
    Switch(bool),
}

impl Ffn {
    /// The factor, if there is one.
    pub(crate) fn factor(self) -> Option<u32> {
        match self {
            Self::Factor(factor) => Some(factor),
            Self::Switch(_) => None,
        }
    }
}

/// `cross_beta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrossBeta {
    /// None.
    Drop,
    /// `beta_i F_i` of the query's node.
    Query,
}

/// `sites`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Of a sequence on itself.
    #[serde(rename = "self")]
    Own,
    /// On an encoder's output.
    Cross,
    /// Both.
    Both,
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "p_adapter",
        title: "p-Adapter",
        summary: "Puts a gated bottleneck behind attention, fed by p-Laplacian message passing on attention's own graph.",
        formula: "`y + W_o (GELU(W_g y) * F~)`, `F~` one step of message passing over `F = W_i Wo V` with the weights \
                  `A_ij |sqrt(A_ij) (F_j - F_i)|^(p - 2)`, `p` trained; beside it `r + U ReLU(D r)` at the feed-forward part.",
        paper: "Wu et al., p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models, 2024 (arXiv:2312.10613)",
        roles: &[Role::AttnKv, Role::AttnScores, Role::Linear, Role::SublayerOut, Role::Head],
        mergeable: false,
        sample_job: sample_job!("p_adapter", ", reduction_factor: 4"),
        invalid: &[
            Invalid { options: r#"{"reduction_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"reduction_factor": 5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"p_self": 0.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"p_cross": 3.5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"mu": 0.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"eps": 0.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"image_sample_len": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"ffn_adapter_reduction_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"cross_beta": "value"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"sites": "cross"}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"target_modules": "all-linear"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"p": 1.5}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"reduction_factor": 2, "image_sample_len": 3}"#;

    fn validate(&self) -> Result<()> {
        positive("reduction_factor", self.reduction_factor)?;
        if matches!(self.ffn_adapter_reduction_factor, Ffn::Factor(0) | Ffn::Switch(true)) {
            return Err(refuse("ffn_adapter_reduction_factor", "must be at least 1, or false"));
        }
        positive("image_sample_len", self.image_sample_len)?;
        for (name, p) in [("p_self", self.p_self), ("p_cross", self.p_cross)] {
            if !(1.0..=3.0).contains(&p) {
                return Err(refuse(name, "must be between 1 and 3"));
            }
        }
        positive_number("mu", self.mu)?;
        positive_number("eps", self.eps)
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        plan::plan(self, model)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        _: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        let p = if plan::is_cross(base.config().sites(), tensor.site) { self.p_cross } else { self.p_self };
        Ok(tch::Tensor::from_slice(&[p as f32]).to_device(base.device()))
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &super::Parts<'_>, _: super::StepInfo) -> Result<()> {
        run::clip(parts)
    }
}
