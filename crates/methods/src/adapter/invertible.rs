//! Invertible adapters: a trained bijection behind the embeddings, and its inverse before the output head where the
//! output is over the vocabulary. NICE (additive) or GLOW (affine) coupling of halves of the hidden states.
//!
//! The tensors and hooks are those of [`super::bottleneck`]'s option `inv_adapter`, alone.
//!
//! Pfeiffer et al., *MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer*, 2020.

use super::bottleneck::{Bn, Coupling, Kind, Of};
use super::common::own_config;
use super::prelude::*;

/// Options of invertible adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The coupling: `nice` or `glow`.
    pub inv_adapter: Coupling,
    /// Width of half the hidden states divided by that of the inner layer.
    pub inv_adapter_reduction_factor: f64,
    /// Activation of the inner layer.
    pub non_linearity: String,
    /// Modules that are trained and saved whole. Classification adds its head by itself.
    pub modules_to_save: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            inv_adapter: Coupling::Nice,
            inv_adapter_reduction_factor: 2.0,
            non_linearity: "relu".to_owned(),
            modules_to_save: None,
        }
    }
}

/// Bottleneck adapters without any.
#[derive(Clone, Debug, PartialEq)]
struct Alone;

impl Kind for Alone {
    const CARD: &'static Card = Config::CARD;
    const PRESET: &'static str = "seq_bn";
}

impl Config {
    fn inner(&self) -> Of<Alone> {
        let bn = Bn {
            output_adapter: false,
            inv_adapter: Some(self.inv_adapter),
            inv_adapter_reduction_factor: Some(self.inv_adapter_reduction_factor),
            non_linearity: self.non_linearity.clone(),
            ..Bn::default()
        };
        Of::new(bn, self.modules_to_save.clone())
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "invertible",
        title: "Invertible adapter",
        summary: "A trained bijection of hidden states behind the embeddings, undone before the output head.",
        formula: "`y1 = x1 + F(x2)`, `y2 = x2 + G(y1)` on halves of the embeddings (`nice`), or the affine form (`glow`); the \
                  inverse before the head of a language model.",
        paper: "Pfeiffer et al., MAD-X, 2020 (arXiv:2005.00052); Dinh et al., NICE, 2014 (arXiv:1410.8516)",
        roles: &[Role::BlockIn, Role::Head],
        mergeable: false,
        identity_at_init: false,
        sample_job: sample_job!("invertible", ", inv_adapter: nice"),
        invalid: &[
            Invalid { options: r#"{"inv_adapter": "nise"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"inv_adapter_reduction_factor": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"inv_adapter_reduction_factor": 1000000}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"non_linearity": "step"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"reduction_factor": 2}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        self.inner().validate()
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        self.inner().plan(model)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn bottleneck(&self) -> Option<Bn> {
        Some(self.inner().bn)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        self.inner().hooks(parts)
    }
}
