//! What is said of a step that is saved: its manifest's facts, and where it lies.

use std::time::Duration;

use pleach_base::{Result, Step, TaskName};
use pleach_spec::job::CheckpointSpec;
use pleach_store::{ADAPTER_CONFIG, Best, LogEntry, Retention, Snapshot, Store, StoreOptions, TaskStore};
use serde_json::{Map, Value, json};

use crate::engine::Saved;
use crate::observer::DurableRow;
use crate::record::CommitRow;

/// Opens a job's store.
pub(super) fn open(spec: &CheckpointSpec) -> Result<Store> {
    Store::open(
        &spec.store,
        &StoreOptions { endpoint: spec.endpoint.clone(), region: spec.region.clone(), ..StoreOptions::default() },
    )
}

pub(super) fn retention(spec: &CheckpointSpec) -> Retention {
    Retention {
        last: spec.retention.last,
        best: spec.retention.best.as_deref().map(Best::by),
        min_age: Duration::from_secs(spec.retention.min_age),
    }
}

/// The task's folder relative to the store's root.
pub(super) fn below_root(store: &Store, task: &TaskStore) -> String {
    let url = task.url();
    url.strip_prefix(store.url().trim_end_matches('/')).unwrap_or(&url).trim_matches('/').to_owned()
}

pub(super) fn durable_row(task: &TaskName, below_root: &str, entry: &LogEntry) -> DurableRow {
    DurableRow {
        task: task.clone(),
        step: entry.step.unwrap_or_default(),
        folder: format!("{below_root}/{}", entry.folder.as_deref().unwrap_or_default()),
        manifest_sha256: entry.manifest_sha256.clone().unwrap_or_default(),
        log_seq: entry.seq,
        publishable: entry.publishable,
    }
}

/// What the manifest says of a step. A function of the job and the step alone, so that the same job gives the same bytes
/// on every store: no times, no workers, no generation.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub(super) step: u64,
    pub(super) total_steps: u64,
    pub(super) epoch: f64,
    pub(super) seed: u64,
    pub(super) method: &'a str,
    pub(super) base_path: &'a str,
    pub(super) base_fingerprint: &'a str,
    pub(super) dataset_digest: &'a str,
    /// `train/loss` of this step, and `eval/NAME` when it was evaluated: what is said of a step was measured on it, since
    /// retention chooses the best by this.
    pub(super) metrics: &'a Map<String, Value>,
}

/// Key of the base model's fingerprint in a manifest.
pub(super) const BASE_FINGERPRINT: &str = "base_fingerprint";
/// Key of the metrics in a manifest.
pub(super) const METRICS: &str = "metrics";

pub(super) fn snapshot(saved: Saved, facts: &Facts<'_>, ledger: Vec<CommitRow>) -> Snapshot {
    let mut gate = saved.gate;
    if facts.base_fingerprint.is_empty() {
        // Nobody could tell later which model the adapter is for.
        gate.publishable = false;
        gate.findings.push("the base model's fingerprint is not recorded".to_owned());
    }
    let meta = json!({
        "step": facts.step,
        "total_steps": facts.total_steps,
        "epoch": facts.epoch,
        "cursor": {"step": facts.step},
        "seed": facts.seed,
        "method": facts.method,
        "base_model": facts.base_path,
        BASE_FINGERPRINT: facts.base_fingerprint,
        "dataset_digest": facts.dataset_digest,
        METRICS: facts.metrics,
    });
    let mut meta = if let Value::Object(meta) = meta { meta } else { Map::new() };
    // Of a mixture, who the experts are.
    let config = saved.files.iter().find(|file| file.name == ADAPTER_CONFIG);
    let config = config.and_then(|file| serde_json::from_slice::<Map<String, Value>>(&file.bytes).ok());
    if let Some(experts) = config.as_ref().and_then(|config| config.get("expert_sources")) {
        meta.insert("experts".to_owned(), experts.clone());
    }
    Snapshot { step: Step(facts.step), files: saved.files, gate, meta, ledger }
}
