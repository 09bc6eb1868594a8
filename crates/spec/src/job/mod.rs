//! The job file, `apiVersion: pleach.dev/v1`. Field names are PEFT's, torchrun's and kubectl's where they have one.
//!
//! Method sections stay raw ([`Section`]): the `methods` crate types them, so that a new method changes nothing here.

mod data;
mod train;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use data::{DataSpec, DataTask, EvalSpec, Masking, RowTasks, is_remote};
pub use train::{
    CheckpointSpec, Determinism, NonFinite, OptimizerName, OptimizerSpec, RetentionSpec, ScheduleName, ScheduleSpec,
    TrainSpec,
};

/// The `apiVersion` that this build reads.
pub const API_VERSION: &str = "pleach.dev/v1";

/// A job: one backbone, data, and one or many adapter tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// `pleach.dev/v1`.
    pub api_version: String,
    /// `Job`.
    pub kind: String,
    /// Name and owner.
    pub metadata: Metadata,
    /// What to do.
    pub spec: JobSpec,
}

/// Name and owner of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Lower-case letters, digits and `-`, at most 63: also the folder name in the store.
    pub name: String,
    /// The owner.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// Free labels.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub labels: IndexMap<String, String>,
}

fn default_tenant() -> String {
    "default".into()
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The frozen model.
    pub backbone: BackboneSpec,
    /// How many workers, at least and at most.
    #[serde(default)]
    pub workers: WorkersSpec,
    /// Training data of every task that does not bring its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSpec>,
    /// Batch, length, optimiser.
    pub train: TrainSpec,
    /// The adapters to train.
    pub tasks: Vec<TaskSpec>,
    /// Evaluation during and after training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSpec>,
    /// Where adapters go and how often.
    pub checkpoint: CheckpointSpec,
    /// A router over the adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Section>,
    /// A training recipe around all tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Section>,
    /// A replacement of attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Section>,
    /// A compression of the backbone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<Section>,
}

/// The frozen model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackboneSpec {
    /// A Hugging Face model folder: `config.json` and safetensors.
    pub path: String,
    /// Precision of the frozen weights; adapters and optimiser state stay in float32.
    #[serde(default)]
    pub dtype: Dtype,
    /// Classes of a classification head, when the model's own configuration does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_labels: Option<u32>,
    /// How a sentence becomes one vector; `mean` unless the model folder says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

/// Precision of frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    #[serde(alias = "float32")]
    #[schemars(extend("x-aliases" = ["float32"]))]
    Fp32,
    /// bfloat16.
    #[serde(alias = "bfloat16")]
    #[schemars(extend("x-aliases" = ["bfloat16"]))]
    Bf16,
}

/// How the vectors of a sentence's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over real tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last real token.
    Last,
}

/// How many workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersSpec {
    /// The job runs with this many or more.
    pub min: u32,
    /// The job uses at most this many; others wait as spares.
    pub max: u32,
    /// Intra-op threads of each; the cores divided by the workers when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// How many times in a row the job may fail without recording a step before it gives up.
    pub restarts: u32,
    /// Jobs of a higher priority go first, and take workers from running ones of a lower priority at their next checkpoint.
    pub priority: i32,
}

impl Default for WorkersSpec {
    fn default() -> Self {
        Self { min: 1, max: 1, threads: None, restarts: 8, priority: 0 }
    }
}

/// One adapter to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Lower-case letters, digits, `-`; unique in the job; also the folder name in the store.
    pub name: String,
    /// The method and its options.
    pub adapter: Section,
    /// Data of this task alone; keys that are absent are those of `spec.data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSpec>,
    /// Optimiser of this task alone; keys that are absent are those of `spec.train.optimizer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerSpec>,
    /// A published adapter to start from: a folder or an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
}

/// A method and its options: `{method: lora, r: 16}`. The method's own configuration refuses unknown keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section {
    /// Name in the registry of its kind.
    pub method: String,
    /// The options, as written.
    #[serde(flatten)]
    pub options: serde_json::Map<String, serde_json::Value>,
}
