//! Sources on disk, through tokenizer and plan, to batches. The fixtures are a small WordPiece tokenizer of BERT's
//! shape, whose file also asks for padding and truncation that must not happen, and a bare word list without special
//! tokens or a token for unknown words.

// Helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

mod cache;
mod damage;
mod loading;
mod masked;
mod parquet_files;
mod rows;
mod sources;
mod tokens;

use std::path::{Path, PathBuf};

use pleach_base::Result;
use pleach_data::{Dataset, Encoder, Limits, Side, Tokenizer};
use pleach_spec::job::{DataSpec, DataTask};
use serde_json::json;

const LIMITS: Limits = Limits { vocab_size: 70, num_labels: Some(3), max_positions: None };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixture(name)).unwrap()
}

/// `spec.data` with these keys beside `source` and `task`.
fn spec(source: &Path, task: DataTask, more: &serde_json::Value) -> DataSpec {
    let mut all = json!({"source": source, "task": task});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn encoder(spec: &DataSpec) -> Encoder {
    Encoder::new(spec, Some(tokenizer("wordpiece.json")), Side::Both, LIMITS).unwrap()
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

/// A dataset of causal language modelling over one file with this content.
fn open(content: &str, more: &serde_json::Value) -> Result<(Dataset, Encoder)> {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(&write(folder.path(), "rows.jsonl", content), DataTask::CausalLm, more);
    let encoder = encoder(&spec);
    Ok((Dataset::open(&spec, &encoder)?, encoder))
}
