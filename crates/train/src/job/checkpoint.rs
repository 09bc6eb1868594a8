//! From a saved task to a durable step: the manifest's facts, the background upload, and the wait at the end.

use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Kind, Result, Step, TaskName};
use pleach_spec::job::CheckpointSpec;
use pleach_store::{
    Best, LogEntry, Retention, Snapshot, Store, StoreOptions, TaskStore, Uploader, UploaderOptions, Writer,
};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use crate::engine::Saved;
use crate::observer::{DurableRow, Level, Observer};
use crate::stop::StopSignal;

/// How often a wait for the store looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// How often it says what it waits for.
const SAY_EVERY: u32 = 20;

/// Opens a job's store.
pub(super) fn open(spec: &CheckpointSpec) -> Result<Store> {
    Store::open(
        &spec.store,
        &StoreOptions { endpoint: spec.endpoint.clone(), region: spec.region.clone(), ..StoreOptions::default() },
    )
}

/// Uploads the steps of one task. Only rank 0 has one.
pub(super) struct Checkpoints {
    task: TaskName,
    place: String,
    uploader: Uploader,
    max_lag: Option<u64>,
    observer: Arc<dyn Observer>,
    stop: StopSignal,
}

impl Checkpoints {
    pub(super) fn start(
        task: &TaskName,
        store: &Store,
        writer: Writer,
        spec: &CheckpointSpec,
        runtime: &Handle,
        observer: &Arc<dyn Observer>,
        stop: &StopSignal,
    ) -> Self {
        let place = writer.task().url();
        let below_root = below_root(store, writer.task());
        let (told, name) = (Arc::clone(observer), task.clone());
        let options = UploaderOptions {
            retention: Some(retention(spec)),
            on_durable: Some(Box::new(move |entry| told.durable(&durable_row(&name, &below_root, entry)))),
            longest_pause: None,
        };
        Self {
            task: task.clone(),
            place,
            uploader: Uploader::start(writer, runtime, options),
            max_lag: spec.max_lag,
            observer: Arc::clone(observer),
            stop: stop.clone(),
        }
    }

    /// Hands in a step; waits only when `checkpoint.max_lag` says so.
    ///
    /// # Errors
    /// What ended the uploads: nothing becomes durable any more.
    pub(super) fn submit(&self, snapshot: Snapshot) -> Result<()> {
        let step = snapshot.step;
        self.uploader.submit(snapshot)?;
        let Some(lag) = self.max_lag else { return Ok(()) };
        match step.0.checked_sub(lag) {
            None | Some(0) => Ok(()),
            Some(least) => self.wait(&format!("step {least} (max_lag {lag})"), |limit| {
                // Before the first durable step there is nothing that could be `least`.
                self.uploader.wait_durable(Step(least), limit)
            }),
        }
    }

    /// Waits until everything handed in is durable, saying what it waits for.
    ///
    /// # Errors
    /// What ended the uploads; `CANCELLED` when an abort comes meanwhile.
    pub(super) fn finish(&self) -> Result<()> {
        let step = self.uploader.status().submitted.unwrap_or_default();
        self.wait(&format!("the checkpoint of step {step}"), |limit| self.uploader.wait_idle(limit))
    }

    fn wait(&self, what: &str, wait: impl Fn(Duration) -> Result<()>) -> Result<()> {
        for look in 0u32.. {
            match wait(LOOK) {
                Err(error) if error.kind() == Kind::Unavailable => {}
                other => return other,
            }
            self.stop.check()?;
            self.observer.progress();
            if look % SAY_EVERY == 1 {
                let trouble = self.uploader.status().trouble.map(|why| format!(": {why}")).unwrap_or_default();
                let line = format!("task {}: waiting for {what} to be durable in {}{trouble}", self.task, self.place);
                self.observer.log(Level::Info, &line);
            }
        }
        Ok(())
    }
}

fn retention(spec: &CheckpointSpec) -> Retention {
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

pub(super) fn snapshot(saved: Saved, facts: &Facts<'_>) -> Snapshot {
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
    let meta = if let Value::Object(meta) = meta { meta } else { Map::new() };
    Snapshot { step: Step(facts.step), files: saved.files, gate, meta, ledger: Vec::new() }
}
