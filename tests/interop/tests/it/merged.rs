//! transformers opens merged folders, whose outputs are those of the adapter.

use std::path::Path;

use pleach_methods::files;
use serde_json::json;

use crate::support::{python, root};

const TOLERANCE: f64 = 1e-4;

fn check(name: &str) {
    let case = root().join("tests/fixtures/parity").join(name);
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let opened = files::open(&case.join("adapter"), &case.join("model")).unwrap();
    files::merge(&opened, &merged, None).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let found = python("merged.py", &[&path(&case), &path(&merged)], &[]);
    assert!(found["adapted"].as_f64().unwrap() <= TOLERANCE, "{name}: {found}");
    assert!(found["base"].as_f64().unwrap() > 100.0 * TOLERANCE, "{name}: the adapter does nothing: {found}");
    assert_eq!((&found["missing"], &found["unexpected"]), (&json!([]), &json!([])), "{name}");
}

#[test]
fn transformers_opens_merged_models() {
    for name in ["llama-lora", "llama-lora-qv-rslora", "bert-lora"] {
        check(name);
    }
}
