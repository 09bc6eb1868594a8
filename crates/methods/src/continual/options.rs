//! Words that options of strategies are made of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the modules' probabilities become one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ensemble {
    /// The largest that any module gives.
    #[default]
    Max,
    /// Their mean.
    Mean,
    /// The online module alone.
    Online,
    /// The offline modules alone, the largest of them.
    Offline,
}

/// When an adapter is drawn to the mean of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergeSchedule {
    /// After every step.
    #[default]
    PerStep,
    /// After the last step of every epoch.
    PerEpoch,
    /// As the paper's released code does: once more a block in every forward pass, evaluation's too, stored adapters
    /// among them.
    Reference,
}

/// What is kept of the spread of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Spread {
    /// The covariance.
    #[default]
    #[serde(rename = "covariance")]
    Covariance,
    /// Its diagonal.
    #[serde(rename = "variance")]
    Variance,
}
