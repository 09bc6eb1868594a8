//! `plan`, `methods` and `explain METHOD`: registries without tensors.

use std::path::Path;

use crate::{pleach, run};

/// A BERT of two blocks, without weights.
fn model(folder: &Path) -> String {
    let config = r#"{"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;
    std::fs::write(folder.join("config.json"), config).expect("written");
    format!("spec.backbone.path={}", folder.display())
}

#[test]
fn the_table_names_every_site_and_ends_with_the_line_of_peft() {
    let folder = tempfile::tempdir().expect("folder");
    let set = model(folder.path());
    let (code, out, err) = run(&mut pleach(&["plan", "docs/jobs/lora-retrieval.yaml", "--set", &set]));
    assert_eq!(code, 0, "{err}");
    assert!(err.starts_with("planned from config.json alone: "), "{err}");
    insta::assert_snapshot!(out);
}

#[test]
fn scripts_get_the_same_numbers_as_json() {
    let folder = tempfile::tempdir().expect("folder");
    let set = model(folder.path());
    let (_, out, _) = run(&mut pleach(&["plan", "docs/jobs/lora-retrieval.yaml", "--set", &set, "-o", "json"]));
    let plan: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    // Two blocks, three maps of 16 to 16, rank 8: 2 x 3 x 8 x (16 + 16).
    assert_eq!(plan["tasks"][0]["trainable"], 1_536);
    assert_eq!(plan["tasks"][0]["sites"].as_array().expect("sites").len(), 6);
}

#[test]
fn a_wrong_option_is_found_on_its_line_and_a_wrong_target_lists_the_nearest() {
    let folder = tempfile::tempdir().expect("folder");
    let set = model(folder.path());
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/jobs/lora-retrieval.yaml"))
        .expect("sample");
    let plan = |from: &str, to: &str| {
        let file = folder.path().join("job.yaml");
        std::fs::write(&file, text.replacen(from, to, 1)).expect("written");
        let (code, _, err) = run(&mut pleach(&["plan", file.to_str().expect("text"), "--set", &set]));
        (code, err.replace(&format!("{}/", folder.path().display()), ""))
    };
    let (code, err) = plan("lora_alpha", "lora_aplha");
    assert_eq!(code, 2);
    assert!(err.contains("job.yaml:26:37: spec.tasks[0].adapter.lora_aplha: unknown key"), "{err}");
    assert!(err.contains("hint: did you mean `lora_alpha`?") && err.contains("PL0102"), "{err}");
    let (code, err) = plan("[query, key, value]", "[q_proj]");
    assert_eq!(code, 2);
    assert!(err.contains("job.yaml:26:") && err.contains("PL0402"), "{err}");
    let (code, err) = plan("method: lora", "method: lorra");
    assert_eq!(code, 2);
    assert!(err.contains("spec.tasks[0].adapter.method") && err.contains("did you mean `lora`?"), "{err}");
}

#[test]
fn a_missing_model_names_the_line() {
    let (code, _, err) = run(&mut pleach(&["plan", "docs/jobs/lora-retrieval.yaml"]));
    assert_eq!(code, 1);
    assert!(err.contains("docs/jobs/lora-retrieval.yaml:8:11: spec.backbone.path: models/all-MiniLM-L6-v2"), "{err}");
}

#[test]
fn methods_are_listed_and_filtered() {
    let (code, out, _) = run(&mut pleach(&["methods"]));
    assert_eq!(code, 0);
    assert!(
        out.lines().any(|line| line.starts_with("lora ") && line.contains("adapter") && line.contains("LORA")),
        "{out}"
    );
    let (_, out, _) = run(&mut pleach(&["methods", "l?ra", "--kind", "adapter", "-o", "json"]));
    let cards: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(cards[0]["name"], "lora");
    let (code, out, err) = run(&mut pleach(&["methods", "zz*"]));
    assert_eq!((code, out.lines().count(), err.as_str()), (0, 1, "no method matches\n"));
    let (code, _, err) = run(&mut pleach(&["methods", "--kind", "adaptor"]));
    assert_eq!(code, 2);
    assert!(err.contains("did you mean `adapter`?"), "{err}");
}

#[test]
fn explain_shows_a_methods_options_and_the_schema_offers_them_to_editors() {
    let (code, out, _) = run(&mut pleach(&["explain", "lora"]));
    assert_eq!(code, 0);
    assert!(out.contains("| `lora_alpha` |") && out.contains("```yaml"), "{out}");
    let (_, out, _) = run(&mut pleach(&["schema"]));
    let schema: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert!(schema["$defs"]["adapter.lora"]["properties"]["r"].is_object());
}

/// A sample that no longer plans misleads whoever copies it.
#[test]
fn every_sample_job_plans_on_a_model_of_its_kind() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut planned = 0;
    for sample in std::fs::read_dir(format!("{root}/docs/jobs")).expect("samples") {
        let path = sample.expect("entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let case = if text.contains("task: causal_lm") { "llama-lora" } else { "bert-lora" };
        let set = format!("spec.backbone.path={root}/tests/fixtures/parity/{case}/model");
        let file = path.display().to_string();
        let (code, out, err) = run(&mut pleach(&["plan", &file, "--set", &set]));
        assert_eq!(code, 0, "{file}: {err}");
        assert!(out.trim_end().lines().last().expect("a line").starts_with("trainable params: "), "{file}: {out}");
        planned += 1;
    }
    assert!(planned >= 3, "{planned} samples");
}
