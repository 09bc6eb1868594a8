//! `spec.data` and `spec.eval`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether an address of a job is not a path of this machine.
#[must_use]
pub fn is_remote(address: &str) -> bool {
    address.contains("://") && !address.starts_with("file://")
}

/// Where rows come from and what they mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// A file, folder or glob of `.jsonl` or `.parquet`, local or `s3://`; every worker reads all of it, and keeps copies
    /// of what lies in S3 in the cache folder of its user.
    pub source: String,
    /// What is learnt from a row.
    pub task: DataTask,
    /// Template of the text, such as `"{prompt}\n{answer}"`; `{text}` when absent. Rows with `input_ids` need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Template of the second text of a pair; for retrieval, of the passage. Retrieval with neither template takes rows
    /// with `input_ids` and `input_ids_pair`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// Field that holds the class number.
    #[serde(default = "default_label")]
    pub label: String,
    /// Field that names the row's task, by name or number, when the adapter tells the tasks of rows apart.
    #[serde(default = "default_task_field")]
    pub task_field: String,
    /// Longest sequence in tokens; longer ones are cut at the end.
    #[serde(default = "default_max_length")]
    pub max_length: u32,
    /// A `tokenizer.json`; the backbone's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// For masked_lm: the id that stands for a masked token; the tokenizer's `[MASK]` or `<mask>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_token_id: Option<u32>,
    /// Malformed rows that are skipped and counted before the job fails.
    #[serde(default)]
    pub max_bad_rows: u64,
    /// Draw rows in a seeded random order each epoch; file order when false.
    #[serde(default = "yes")]
    pub shuffle: bool,
}

fn default_label() -> String {
    "label".into()
}

fn default_task_field() -> String {
    "task".into()
}

fn default_max_length() -> u32 {
    512
}

fn yes() -> bool {
    true
}

/// What is learnt from a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataTask {
    /// Predict the next token.
    CausalLm,
    /// Predict tokens that are masked: drawn ones, anew in every epoch. Rows of `input_ids` with `labels` are masked
    /// already, and are taken as they are.
    MaskedLm,
    /// Assign one class to a text or a pair of texts.
    SequenceClassification,
    /// Bring a query (`text` or `input_ids`) near its passage (`text_pair` or `input_ids_pair`); the other passages of the batch are the negatives.
    Retrieval,
}

impl DataTask {
    /// Whether rows are texts alone, of which tokens are predicted.
    #[must_use]
    pub fn is_language(self) -> bool {
        matches!(self, Self::CausalLm | Self::MaskedLm)
    }
}

/// How tokens of masked language modelling are drawn, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// Share of the tokens that are predicted; special tokens never are.
    pub probability: f64,
    /// Shares of those that become the mask, stay as they are, and become a drawn token. They add up to 1.
    pub mix: [f64; 3],
}

impl Default for Masking {
    /// BERT's.
    fn default() -> Self {
        Self { probability: 0.15, mix: [0.8, 0.1, 0.1] }
    }
}

/// The tasks that rows may name: what an adapter that tells them apart asks of the data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowTasks {
    /// How many; rows may name them by number from 0.
    pub count: u32,
    /// Their names in the order of the numbers; empty when they have none.
    pub names: Vec<String>,
    /// What stands in front of each task's text; empty, or one a task.
    pub prompts: Vec<String>,
    /// Every step has rows of one task alone: the tasks take turns.
    pub alike: bool,
    /// Rows of a task's step in parts of the global batch; empty when all are 1.
    pub batch_ratio: Vec<f64>,
}

/// Evaluation during and after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalSpec {
    /// Rows to evaluate on, read as `spec.data` reads its own.
    pub source: String,
    /// For retrieval: more rows whose passages are candidates too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<String>,
    /// Steps between evaluations; only before the first and after the last step when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// `loss`, `accuracy`, `recall@K`, `mrr`; what fits the task when empty.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Evaluate once before the first step.
    #[serde(default = "yes")]
    pub at_start: bool,
}
