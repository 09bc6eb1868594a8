//! Every kind of bad input of the job, as a user meets it: an exit code, a stable code, a name, a hint, and nothing written.

use serde_json::{Value, json};

use crate::support::{Bench, LONG, model};

/// `pleach train` on a spoilt job: exit code and text.
fn train(bench: &Bench, spoil: impl FnOnce(&mut Value)) -> (i32, String) {
    let mut spec = bench.spec(10);
    spoil(&mut spec);
    let mut process = bench.train(&bench.job("spoilt", &spec), &[]);
    let status = process.wait(LONG).unwrap();
    (status.code().unwrap_or(-1), process.text())
}

fn assert_refused((code, text): (i32, String), exit: i32, expected: &[&str]) {
    assert_eq!(code, exit, "{text}");
    for part in expected {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert!(text.contains("hint: ") || text.contains("see: pleach explain"), "{text}");
}

#[test]
fn a_misspelt_key_is_refused_with_the_nearest_name() {
    let bench = Bench::new();
    let refused = train(&bench, |spec| spec["train"]["globl_batch"] = 4.into());
    assert_refused(refused, 2, &["PL0102", "globl_batch", "did you mean `global_batch`?"]);
    assert!(!bench.path("store").exists());
}

#[test]
fn a_missing_model_and_weights_that_do_not_fit_are_named() {
    let bench = Bench::new();
    let refused = train(&bench, |spec| spec["backbone"]["path"] = bench.path("nowhere").to_str().unwrap().into());
    assert_refused(refused, 1, &["PL0301", "nowhere"]);

    let other = bench.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(model().join("model.safetensors"), other.join("model.safetensors")).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(model().join("config.json")).unwrap()).unwrap();
    let mut config = config;
    config["intermediate_size"] = 200.into();
    std::fs::write(other.join("config.json"), config.to_string()).unwrap();
    let refused = train(&bench, |spec| spec["backbone"]["path"] = other.to_str().unwrap().into());
    assert_refused(refused, 1, &["PL0303", "gate_proj", "200", "176"]);
}

#[test]
fn a_target_that_matches_nothing_lists_the_nearest_sites() {
    let bench = Bench::new();
    let refused = train(&bench, |spec| spec["tasks"][0]["adapter"]["target_modules"] = json!(["q_porj"]));
    assert_refused(refused, 2, &["PL0402", "q_proj"]);
}

#[test]
fn rows_that_cannot_be_used_name_file_and_line() {
    let bench = Bench::new();
    let rows = bench.path("big.jsonl");
    std::fs::write(&rows, "{\"input_ids\": [3, 4, 5]}\n{\"input_ids\": [3, 99999]}\n").unwrap();
    let refused = train(&bench, |spec| {
        spec["data"]["source"] = rows.to_str().unwrap().into();
        spec["train"]["global_batch"] = 2.into();
    });
    assert_refused(refused, 1, &["PL0205", "big.jsonl:2", "99999"]);
}

#[test]
fn an_empty_dataset_and_a_batch_above_it_are_refused() {
    let bench = Bench::new();
    let rows = bench.path("empty.jsonl");
    std::fs::write(&rows, "").unwrap();
    let refused = train(&bench, |spec| spec["data"]["source"] = rows.to_str().unwrap().into());
    assert_refused(refused, 1, &["PL0201", "empty.jsonl"]);

    let refused = train(&bench, |spec| spec["train"]["global_batch"] = 65.into());
    assert_refused(refused, 1, &["PL0203", "65", "64"]);
}

#[test]
fn an_adapter_of_another_base_model_is_refused() {
    let bench = Bench::new();
    let first = bench.trained(&bench.job("first", &bench.spec(5)), &[]);
    let from = bench.path("store").join(first["tasks"][0]["durable_folder"].as_str().unwrap());

    // The same shapes with one other value: only the fingerprint tells.
    let other = bench.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(model().join("config.json"), other.join("config.json")).unwrap();
    let mut weights = std::fs::read(model().join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(other.join("model.safetensors"), weights).unwrap();

    let refused = train(&bench, |spec| {
        spec["backbone"]["path"] = other.to_str().unwrap().into();
        spec["tasks"][0]["init_from"] = from.to_str().unwrap().into();
    });
    assert_refused(refused, 1, &["PL0405"]);
}
