//! `spec.train` and `spec.checkpoint`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Batch, length, optimiser. One of `epochs` and `max_steps` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Rows per optimiser step, whatever the number of workers.
    pub global_batch: u32,
    /// Rows that one rank puts through the model at once; gradients accumulate over a step. The rank's share when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Keep the hidden states between blocks alone, and run each block again when its gradient is due: less memory for
    /// more computing.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Deterministic streams that a step is made of; the largest divisor of `global_batch` up to `workers.max` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u32>,
    /// Passes over the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Optimiser steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// Total gradient norm above which gradients are scaled down; no clipping when 0.
    #[serde(default = "default_max_grad_norm")]
    pub max_grad_norm: f64,
    /// Same bits whatever the number of workers, or fast.
    #[serde(default)]
    pub determinism: Determinism,
    /// Seed of initialisation, order, dropout.
    #[serde(default)]
    pub seed: u64,
    /// What to do when a loss or gradient is not finite, on all ranks alike.
    #[serde(default)]
    pub non_finite: NonFinite,
    /// Divisor of the similarities in contrastive losses.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Steps between log lines.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
}

fn default_max_grad_norm() -> f64 {
    1.0
}

fn default_temperature() -> f64 {
    0.05
}

fn default_log_every() -> u64 {
    1
}

/// Same bits, or fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Determinism {
    /// Plain all-reduce; equal within rounding.
    #[default]
    Fast,
    /// Bit-identical for any number of workers on the same machine type.
    Strict,
}

/// What to do with a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Leave the task at its last step; the others go on, and when they are done the job fails.
    #[default]
    Stop,
    /// Skip the update, count it, go on.
    Skip,
}

/// The optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSpec {
    /// Which one.
    pub name: OptimizerName,
    /// Peak learning rate.
    pub lr: f64,
    /// AdamW: decay of the two moments.
    pub betas: [f64; 2],
    /// AdamW: term added to the denominator.
    pub eps: f64,
    /// Weight decay on all trainable tensors: decoupled with AdamW, added to the gradient with SGD.
    pub weight_decay: f64,
    /// SGD: momentum.
    pub momentum: f64,
}

impl Default for OptimizerSpec {
    fn default() -> Self {
        Self { name: OptimizerName::AdamW, lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, momentum: 0.0 }
    }
}

/// Names of optimisers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[default]
    AdamW,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The learning rate over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSpec {
    /// Shape after the warm-up.
    pub name: ScheduleName,
    /// Steps of linear warm-up from zero.
    pub warmup_steps: u64,
}

/// Shapes of schedules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls linearly to zero at the last step.
    Linear,
    /// Half a cosine down to zero at the last step.
    Cosine,
}

/// Where adapters go and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    /// A folder, `file:///folder` or `s3://bucket/prefix`.
    pub store: String,
    /// Endpoint of an S3-compatible server; `AWS_ENDPOINT_URL` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region; `AWS_REGION`, else `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Steps between checkpoints; the last step is always one.
    #[serde(default = "default_every")]
    pub every: u64,
    /// Which steps are kept.
    #[serde(default)]
    pub retention: RetentionSpec,
    /// Steps that training may be ahead of the newest durable one before it waits, 0 to wait for every checkpoint; unbounded
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lag: Option<u64>,
}

fn default_every() -> u64 {
    100
}

/// Which steps are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSpec {
    /// The newest so many.
    pub last: u32,
    /// Besides, the best by this metric: `eval/loss` (lowest) or `eval/NAME` (highest).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// Nothing younger is removed, in seconds.
    pub min_age: u64,
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self { last: 3, best: None, min_age: 600 }
    }
}
