//! The weighted mean of what several adapters give at a site: `y = sum_i w_i y_i`. An adapter that does not act at a site
//! gives there what the model gives.
//!
//! AdapterHub's `Average` divides by the number of adapters once more, although its weights sum to one already; this
//! build does not. It averages results, not parameters.
//!
//! Wang et al., *AdaMix*, 2022; Chronopoulou et al., *AdapterSoup*, 2023.

use super::compose::{self, Child};
use super::prelude::*;
use super::stack::ROLES;

/// Options of an average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The adapters: each with `name`, `method`, the method's options, and perhaps `init_from` (a local folder of a saved
    /// adapter) and `frozen`.
    pub adapters: Vec<Child>,
    /// Their weights; all the same when left out.
    pub weights: Option<Vec<f64>>,
    /// Divide the weights by their sum.
    pub normalize_weights: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { adapters: Vec::new(), weights: None, normalize_weights: true }
    }
}

impl Config {
    fn shares(&self) -> Vec<f64> {
        let weights = self.weights.clone().unwrap_or_else(|| vec![1.0; self.adapters.len()]);
        let sum = if self.normalize_weights || self.weights.is_none() { weights.iter().sum() } else { 1.0 };
        weights.iter().map(|weight| weight / sum).collect()
    }
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "average",
        title: "Average of adapters",
        summary: "The weighted mean of what several adapters give.",
        formula: "`y = sum_i w_i a_i(x)` at every site where one of them acts.",
        paper: "Chronopoulou et al., AdapterSoup, 2023 (arXiv:2302.07027)",
        roles: ROLES,
        sample_job: sample_job!(
            "average",
            ", weights: [2, 1], adapters: [{name: one, method: bottleneck}, {name: other, method: bottleneck}]"
        ),
        invalid: &[
            Invalid { options: r#"{"adapters": []}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora"}], "weights": [1, 2]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora"}], "weights": [0]}"#,
                code: code::METHOD_CONFIG,
            },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"weights": [2, 1], "adapters": [{"name": "a", "method": "lora", "r": 2},
        {"name": "b", "method": "lora", "r": 3, "target_modules": "all-linear"}]}"#;

    fn validate(&self) -> Result<()> {
        compose::validate(&self.adapters)?;
        if self.weights.as_ref().is_some_and(|weights| weights.len() != self.adapters.len()) {
            return Err(refuse("weights", "must be as many as there are adapters"));
        }
        if !self.shares().iter().all(|share| share.is_finite()) {
            return Err(refuse("weights", "must be numbers whose sum is not 0"));
        }
        Ok(())
    }

    fn imported(self) -> Self {
        Self { adapters: self.adapters.into_iter().map(Child::read).collect(), ..self }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        compose::plan(&self.adapters, false, model)
    }

    compose::passed_on! {}

    compose::begins_and_regularises! {}

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        compose::hooks(&self.adapters, parts, |_| Ok(Some(compose::Join::Average(self.shares()))))
    }
}
