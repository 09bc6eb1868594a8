//! The records that are stored: log entry and manifest, and the snapshot that they describe.
//!
//! Only log entries know time and writer. A manifest and the files beside it depend on the job alone, so that the
//! same job gives the same bytes on every store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use pleach_base::{Error, Fence, Result, Step, Timestamp, code};

use crate::line::Kept;

use crate::ledger::{LedgerChunk, LedgerRow};

/// The version of every record written by this build; newer ones are refused with `STORE_FORMAT`.
pub const FORMAT_VERSION: u32 = 1;
/// PEFT's configuration file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's weights.
pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";
/// Optimiser and cursor: what a resumed job needs besides the adapter.
pub const TRAINER_STATE: &str = "trainer_state.safetensors";
/// The list of the files of a step with their hashes.
pub const MANIFEST: &str = "manifest.json";

/// What a log entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A writer took the task over; entries of smaller fences cannot follow.
    Fence,
    /// A step is durable.
    Step,
    /// Steps were given up by retention: their folders may be gone.
    Retain,
}

/// One object of the log, created once and never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Its place in the log, counted from 1 without gaps.
    pub seq: u64,
    /// What it says.
    pub kind: EntryKind,
    /// Term and generation of the writer.
    #[serde(flatten)]
    pub fence: Fence,
    /// Drawn by each writer, so that a repeated write knows its own entry.
    pub writer: String,
    /// When it was written, by the writer's clock. For people and for retention; nothing is ordered by it.
    pub at_ms: Timestamp,
    /// The step (kind `step`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// The folder below the task's folder, such as `steps/00001000-g0007` (kind `step`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// sha256 of the manifest's bytes in hex (kind `step`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// Sum of the lengths of the files that the manifest lists (kind `step`).
    #[serde(default)]
    pub bytes: u64,
    /// Whether the gate passed: only such steps are pulled and exported (kind `step`).
    #[serde(default)]
    pub publishable: bool,
    /// The finite numbers of the snapshot's metrics, such as `eval/loss` (kind `step`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Ledger rows that came with the step (kind `step`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledger: Vec<LedgerChunk>,
    /// Folders that are given up (kind `retain`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// What is left of the steps before it (kind `retain`; entries of older builds have none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What was checked before a step may be given to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Whether the step may be given to others.
    pub publishable: bool,
    /// What was found, one sentence each; may hold remarks on a step that passes.
    #[serde(default)]
    pub findings: Vec<String>,
}

impl Gate {
    /// A gate that found nothing.
    #[must_use]
    pub fn passed() -> Self {
        Self { publishable: true, findings: Vec::new() }
    }
}

/// `manifest.json` of a step folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Optimiser steps done.
    pub step: Step,
    /// The files beside it, sorted by name.
    pub files: Vec<ManifestFile>,
    /// The gate's result.
    pub gate: Gate,
    /// What the trainer wants to be known of the step: epoch, loss, metrics, method, base fingerprint, seed, cursor.
    #[serde(default)]
    pub meta: Map<String, Value>,
}

/// One file of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// A plain file name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its sha256 in hex.
    pub sha256: String,
}

/// A step in memory: what [`crate::Writer::commit`] stores and [`crate::TaskStore::read`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Optimiser steps done.
    pub step: Step,
    /// The files, without `manifest.json`.
    pub files: Vec<SnapshotFile>,
    /// The gate's result.
    pub gate: Gate,
    /// Goes into the manifest. An object `metrics` of numbers in it is copied into the log entry for retention and
    /// listings.
    pub meta: Map<String, Value>,
    /// The steps since the last durable one, in order; this one is the last. Stored beside the step, and not read back
    /// with it: see [`crate::TaskStore::ledger`].
    pub ledger: Vec<LedgerRow>,
}

/// One file of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// A plain file name.
    pub name: String,
    /// Its content.
    pub bytes: Bytes,
}

impl SnapshotFile {
    /// A file of this name and content.
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Snapshot {
    /// The file of this name.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&Bytes> {
        self.files.iter().find(|file| file.name == name).map(|file| &file.bytes)
    }

    /// The finite numbers of `meta.metrics`.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let Some(metrics) = self.meta.get("metrics").and_then(Value::as_object) else { return BTreeMap::new() };
        metrics.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
    }

    /// The manifest that describes it.
    ///
    /// # Errors
    /// `INTERNAL` when a name is not a plain file name, is used twice, or is the manifest's own.
    pub fn manifest(&self) -> Result<Manifest> {
        let mut files: Vec<_> = self
            .files
            .iter()
            .map(|file| ManifestFile {
                name: file.name.clone(),
                bytes: file.bytes.len() as u64,
                sha256: sha256(&file.bytes),
            })
            .collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        check_names(&files).map_err(|why| code::INTERNAL.error(format!("snapshot of step {}: {why}", self.step)))?;
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            step: self.step,
            files,
            gate: self.gate.clone(),
            meta: self.meta.clone(),
        })
    }
}

/// Lower-case hex of the sha256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Whether each name can be a file beside the manifest: readers join these names to local folders.
pub(crate) fn check_names(files: &[ManifestFile]) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::from([MANIFEST]);
    for file in files {
        let name = file.name.as_str();
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if name.is_empty() || name.starts_with('.') || !plain {
            return Err(format!("`{name}` is not a plain file name (letters, digits, `.`, `_`, `-`)"));
        }
        if !seen.insert(name) {
            return Err(format!("`{name}` is listed twice"));
        }
    }
    Ok(())
}

/// Parses a stored record, naming the object. The version is read first, so that a newer record says so instead of
/// naming the field that this build misses.
pub(crate) fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    let corrupt = |why: String| code::STORE_CORRUPT.error(format!("{key}: {why}"));
    let value: Value = serde_json::from_slice(bytes).map_err(|e| corrupt("not JSON".to_owned()).caused_by(e))?;
    let version = value.get("format_version").and_then(Value::as_u64);
    match version {
        Some(version) if version == u64::from(FORMAT_VERSION) => {
            serde_json::from_value(value).map_err(|e| corrupt("not a record of this kind".to_owned()).caused_by(e))
        }
        Some(version) if version > u64::from(FORMAT_VERSION) => Err(newer(key, version)),
        _ => Err(corrupt("`format_version` is missing or unknown".to_owned())),
    }
}

pub(crate) fn newer(key: &str, version: u64) -> Error {
    code::STORE_FORMAT
        .error(format!("{key}: format_version is {version}, this build reads up to {FORMAT_VERSION}"))
        .hint("use the version of Pleach that wrote it, or a newer one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn snapshot(names: &[&str]) -> Snapshot {
        let files = names.iter().map(|name| SnapshotFile::new(*name, vec![1, 2])).collect();
        Snapshot { step: Step(3), files, gate: Gate::passed(), meta: Map::new(), ledger: Vec::new() }
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for bad in ["../x", "a/b", "", ".", "..", ".hidden", "a\\b", "manifest.json", "a b"] {
            let error = snapshot(&[bad]).manifest().expect_err(bad);
            assert_eq!(error.code(), code::INTERNAL, "{bad}");
        }
        assert!(snapshot(&["a", "a"]).manifest().expect_err("twice").message().contains("twice"));
        assert_eq!(snapshot(&["b", "a"]).manifest().unwrap().files[0].name, "a");
    }

    #[test]
    fn only_finite_metrics_reach_the_log() {
        let mut one = snapshot(&[]);
        one.meta.insert("metrics".to_owned(), json!({"eval/loss": 0.5, "note": "x", "n": 3}));
        assert_eq!(one.metrics(), BTreeMap::from([("eval/loss".to_owned(), 0.5), ("n".to_owned(), 3.0)]));
    }

    #[test]
    fn a_newer_record_says_so_and_a_broken_one_names_its_key() {
        let error = parse::<Manifest>("k", br#"{"format_version": 2}"#).expect_err("newer");
        assert_eq!(error.code(), code::STORE_FORMAT);
        for bad in [&b"{"[..], b"{}", br#"{"format_version": 0}"#, br#"{"format_version": 1}"#, b"[1]", b"\xff"] {
            let error = parse::<Manifest>("some/key", bad).expect_err("broken");
            assert_eq!(error.code(), code::STORE_CORRUPT);
            assert!(error.message().starts_with("some/key: "), "{error}");
        }
    }
}
