//! transformers opens merged folders, whose outputs are those of the adapters.

use pleach_base::code;
use pleach_methods::files;
use serde_json::json;

use crate::support::{python, root};

const TOLERANCE: f64 = 1e-4;

/// Every recorded case is merged; only methods of virtual tokens may refuse.
#[test]
fn transformers_opens_merged_models() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = Vec::new();
    let mut refused = Vec::new();
    for case in root().join("tests/fixtures/parity").read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if !case.join("case.json").is_file() {
            continue;
        }
        let to = folder.path().join(case.file_name().unwrap());
        let opened = files::open(&case.join("adapter"), &case.join("model")).unwrap();
        let method = opened.adapter.config().card().name;
        match files::merge(&opened, &to, None) {
            Ok(_) => args.extend([case, to].map(|path| path.to_str().unwrap().to_owned())),
            Err(error) => {
                assert!(error.code() == code::METHOD_CONFIG, "{}: {error}", case.display());
                refused.push(method);
            }
        }
    }
    refused.retain(|method| !["prefix", "prompt", "p_tuning"].contains(method));
    assert!(refused.is_empty(), "{refused:?}");
    let found = python("merged.py", &args.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    for (case, found) in found.as_object().unwrap() {
        assert!(found["adapted"].as_f64().unwrap() <= TOLERANCE, "{case}: {found}");
        assert!(found["base"].as_f64().unwrap() > 10.0 * TOLERANCE, "{case}: the adapter does nothing: {found}");
        assert_eq!((&found["missing"], &found["unexpected"]), (&json!([]), &json!([])), "{case}");
    }
}
