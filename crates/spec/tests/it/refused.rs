//! One table of what is refused: an edit of the valid job, and the snapshot of all that is said about it.

use std::fmt::Write;

use pleach_base::{Code, code};
use pleach_spec::{check_section, load, parse};
use serde_json::json;

use crate::JOB;

/// What is wrong, the text of the valid job that is replaced, its replacement, and the expected code.
const BAD: &[(&str, &str, &str, Code)] = &[
    ("a misspelt section", "  train:", "  trian:", code::UNKNOWN_KEY),
    ("a misspelt key", "global_batch:", "global_bach:", code::UNKNOWN_KEY),
    ("a key of axolotl at the top", "kind: Job", "kind: Job\nlora_r: 8", code::UNKNOWN_KEY),
    ("a key of Hugging Face in train", "epochs: 2", "num_train_epochs: 2", code::UNKNOWN_KEY),
    ("learning_rate in train", "epochs: 2", "epochs: 2\n    learning_rate: 1", code::UNKNOWN_KEY),
    ("a known key in the wrong section", "kind: Job", "kind: Job\nretention: {last: 1}", code::UNKNOWN_KEY),
    ("nonsense lists what is known", "{store: out}", "{store: out, qqq: 1}", code::UNKNOWN_KEY),
    ("another version", "pleach.dev/v1", "pleach.dev/v2", code::API_VERSION),
    ("another kind", "kind: Job", "kind: Pod", code::API_VERSION),
    ("no version", "apiVersion: pleach.dev/v1\n", "", code::API_VERSION),
    ("bad indentation", "    path: models/mini", "    path: models/mini\n   dtype: bf16", code::JOB_SYNTAX),
    ("a flow map left open", "{store: out}", "{store: out", code::JOB_SYNTAX),
    ("a key twice", "epochs: 2", "epochs: 2\n    epochs: 3", code::JOB_SYNTAX),
    ("two documents", "kind: Job", "kind: Job\n---\na: 1", code::JOB_SYNTAX),
    ("a missing key", "    global_batch: 12\n", "", code::BAD_VALUE),
    ("text for a number", "global_batch: 12", "global_batch: twelve", code::BAD_VALUE),
    ("a fraction for a count", "global_batch: 12", "global_batch: 1.5", code::BAD_VALUE),
    ("a negative count", "global_batch: 12", "global_batch: -1", code::BAD_VALUE),
    ("a count out of range", "global_batch: 12", "global_batch: 4294967296", code::BAD_VALUE),
    ("a number for text", "{name: demo}", "{name: 12}", code::BAD_VALUE),
    ("an old YAML boolean", "task: causal_lm", "task: causal_lm\n    shuffle: yes", code::BAD_VALUE),
    ("a map for a list", "[q_proj, v_proj]}", "[q_proj]}\n      data: []", code::BAD_VALUE),
    ("nothing where a map belongs", "{min: 1, max: 4}", "", code::BAD_VALUE),
    ("an unknown word", "task: causal_lm", "task: casual_lm", code::BAD_VALUE),
    ("an unknown dtype", "models/mini", "models/mini\n    dtype: fp8", code::BAD_VALUE),
    ("three betas", "{lr: 2e-4}", "{betas: [0.9, 0.9, 0.9]}", code::BAD_VALUE),
    ("infinity", "2e-4", ".inf", code::JOB_SYNTAX),
    ("a learning rate of zero", "2e-4", "0", code::BAD_VALUE),
    ("a beta of one", "{lr: 2e-4}", "{betas: [0.9, 1.0]}", code::BAD_VALUE),
    ("a name with capitals", "{name: demo}", "{name: Demo}", code::BAD_VALUE),
    ("a tenant that climbs", "{name: demo}", "{name: demo, tenant: ..}", code::BAD_VALUE),
    ("min above max", "{min: 1, max: 4}", "{min: 5, max: 4}", code::BAD_VALUE),
    ("no worker", "{min: 1, max: 4}", "{min: 0, max: 4}", code::BAD_VALUE),
    ("lanes that do not divide", "epochs: 2", "epochs: 2\n    lanes: 5", code::BAD_VALUE),
    ("no rows at once", "epochs: 2", "epochs: 2\n    micro_batch: 0", code::BAD_VALUE),
    ("more rows at once than a step has", "epochs: 2", "epochs: 2\n    micro_batch: 13", code::BAD_VALUE),
    ("no length", "    epochs: 2\n", "", code::BAD_VALUE),
    ("two lengths", "epochs: 2", "epochs: 2\n    max_steps: 9", code::BAD_VALUE),
    ("no epoch", "epochs: 2", "epochs: 0", code::BAD_VALUE),
    ("an adapter without a method", "method: lora, ", "", code::BAD_VALUE),
    ("a method that is a map", "method: lora", "method: {name: lora}", code::BAD_VALUE),
    ("the same task twice", "\n  eval:", "\n    - {name: answers, adapter: {method: lora}}\n  eval:", code::BAD_VALUE),
    ("a task without data", "  data:\n    source: data/*.jsonl\n    task: causal_lm\n", "", code::BAD_VALUE),
    ("retrieval without passages", "task: causal_lm", "task: retrieval\n    text: '{query}'", code::BAD_VALUE),
    ("an unknown metric", "data/held.jsonl", "data/held.jsonl, metrics: [loss, recal@1]", code::BAD_VALUE),
    ("a best that is no metric", "{store: out}", "{store: out, retention: {best: loss}}", code::BAD_VALUE),
    ("keep none", "{store: out}", "{store: out, retention: {last: 0}}", code::BAD_VALUE),
];

#[test]
fn every_refusal_names_the_place_and_what_to_do() {
    let mut said = String::new();
    for (what, from, to, want) in BAD {
        assert_eq!(JOB.matches(from).count(), 1, "{what}: `{from}` must be one place of the valid job");
        let error = parse(&JOB.replacen(from, to, 1), "job.yaml").expect_err(what);
        assert_eq!(error.code(), *want, "{what}: {error:?}");
        assert!(error.message().starts_with("job.yaml:"), "{what}: {error}");
        let _ = writeln!(said, "# {what}\n{}", error.chain());
        if let Some(hint) = error.hint_text() {
            let _ = writeln!(said, "  hint: {hint}");
        }
    }
    insta::assert_snapshot!(said);
}

#[test]
fn overrides_are_judged_like_the_file_and_named_as_the_place() {
    let cases = [
        ("spec.train.lerning_rate=1", code::UNKNOWN_KEY),
        ("spec.train.optimizer.lr=fast", code::BAD_VALUE),
        ("spec.train.lanes=5", code::BAD_VALUE),
        ("spec.tasks[3].name=x", code::BAD_OVERRIDE),
        ("spec.train", code::BAD_OVERRIDE),
        ("spec.train.epochs=[1", code::BAD_OVERRIDE),
    ];
    let mut said = String::new();
    for (argument, want) in cases {
        let error = load(JOB, "job.yaml", &[argument.to_owned()]).expect_err(argument);
        assert_eq!(error.code(), want, "{argument}: {error:?}");
        let _ = writeln!(said, "{error}\n  hint: {}", error.hint_text().unwrap_or("-"));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn hostile_documents_are_refused_quickly() {
    let deep = format!("a: {}1{}", "[".repeat(5_000), "]".repeat(5_000));
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let _ = writeln!(laughs, "a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 8].join(", "));
    }
    let large = format!("a: {}", "x".repeat(2 << 20));
    let many = format!("a: [{}]", "1,".repeat(300_000));
    let echoes = format!("a: &a x\nb: [{}]", "*a,".repeat(300));
    for (what, text) in [("deep", deep), ("aliases", laughs), ("echoes", echoes), ("large", large), ("many", many)] {
        let error = parse(&text, "job.yaml").expect_err(what);
        assert_eq!(error.code(), code::JOB_SYNTAX, "{what}: {error}");
    }
}

#[test]
fn a_method_can_check_its_options_by_its_schema() {
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "properties": {"r": {"type": "integer", "minimum": 1}, "lora_alpha": {"type": "number"}},
    });
    let section = |options: serde_json::Value| pleach_spec::job::Section {
        method: "lora".into(),
        options: options.as_object().cloned().unwrap(),
    };
    let at = "spec.tasks[0].adapter";
    check_section(&schema, &section(json!({"r": 8, "lora_alpha": 1})), at).unwrap();
    let error = check_section(&schema, &section(json!({"lora_alhpa": 8})), at).unwrap_err();
    assert_eq!(error.message(), "spec.tasks[0].adapter.lora_alhpa: unknown key");
    assert_eq!(error.hint_text(), Some("did you mean `lora_alpha`?"));
    let error = check_section(&schema, &section(json!({"r": 0})), at).unwrap_err();
    assert_eq!(error.message(), "spec.tasks[0].adapter.r: 0 is below 1");
}
