//! Jobs that train domain adapters on texts of a domain and on general ones, and what their adapters are used for.

use std::path::Path;
use std::sync::Arc;

use pleach_base::code;
use pleach_nn::{HeadKind, families, write_tiny};
use pleach_train::{Outcome, StopSignal};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Heard, llama_job, lm_row, parse, run, run_alone, stored};
use crate::gang::{alone, near, survives_kills};
use crate::processes::{Gang, gang};

/// Of masked language modelling, or of a causal model.
fn family(task: &str) -> (&'static str, HeadKind) {
    if task == "masked_lm" { ("bert", HeadKind::MaskedLm) } else { ("llama", HeadKind::CausalLm) }
}

/// A strict job of five steps; rows of the domain fill two epochs and a half, general ones more than three.
fn first(folder: &Path, task: &str) -> Value {
    let (name, head) = family(task);
    let model = folder.join("model");
    let family = families().iter().find(|own| own.name() == name).unwrap();
    write_tiny(*family, Some(head), &model, 1).unwrap();
    let mut job = llama_job(folder, 19);
    let general = folder.join("general.jsonl");
    std::fs::write(&general, (0..13).map(|row| lm_row(row, 500)).collect::<String>()).unwrap();
    let spec = job["spec"].as_object_mut().unwrap();
    spec["backbone"]["path"] = json!(model);
    spec["data"]["task"] = json!(task);
    spec["data"]["mask_token_id"] = json!(4);
    spec["train"]["determinism"] = json!("strict");
    spec["train"].as_object_mut().unwrap().remove("epochs");
    spec["train"]["max_steps"] = json!(5);
    spec["checkpoint"]["every"] = json!(1);
    spec["tasks"][0]["adapter"] = json!({"method": "domain", "layers": [0, 1], "adapter_down_scale": 4});
    spec.insert(
        "strategy".to_owned(),
        json!({"method": "mixda", "stage": 1, "general_data": general, "mlm_probability": 0.3}),
    );
    job
}

fn without_general(job: &Value) -> Value {
    let mut job = job.clone();
    let options = job["spec"]["strategy"].as_object_mut().unwrap();
    options.remove("general_data");
    options.insert("no_old_knowledge".to_owned(), json!(true));
    job
}

#[rstest]
fn any_number_of_ranks_trains_what_one_trains(#[values("masked_lm", "causal_lm")] task: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = first(folder.path(), task);
    let one = alone(&job, folder.path());
    assert_eq!((one.end.as_str(), one.losses.len()), ("Finished", 5), "{}", one.message);
    for world in [2, 3] {
        job["spec"]["checkpoint"]["store"] = json!(folder.path().join(format!("store-{world}")));
        let many = gang(folder.path(), &job, world, &Gang::default());
        assert_eq!((many[0].end.as_str(), &many[0].digests), ("Finished", &one.digests), "{}", many[0].message);
        assert_eq!(many[0].losses, one.losses, "{world} ranks");
        near(&[many[0].metrics[1]["loss"]], &[one.metrics[1]["loss"]], 1e-6);
    }
    job["spec"]["train"]["determinism"] = json!("fast");
    job["spec"]["train"]["micro_batch"] = json!(3);
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("fast"));
    let fast = gang(folder.path(), &job, 2, &Gang { generation: 2, ..Gang::default() });
    near(&fast[0].losses, &one.losses, 1e-4);
}

/// What masks are drawn and which general rows come next is no state: it follows from the step.
#[rstest]
fn an_interruption_leaves_no_trace(#[values("masked_lm", "causal_lm")] task: &str) {
    let folder = tempfile::tempdir().unwrap();
    let job = first(folder.path(), task);
    let expected = alone(&job, folder.path());
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut digests = Vec::new();
    for generation in 1..=2 {
        let stop = StopSignal::default();
        let heard = Arc::new(Heard::draining_at(if generation == 1 { 2 } else { 99 }, &stop));
        let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
        digests.extend(heard.digests());
        assert_eq!(outcome == Outcome::Finished, generation == 2, "generation {generation}");
    }
    assert_eq!(digests, expected.digests);
    survives_kills(task, &job, &folder.path().join("kills"), [1, 2]);
}

/// Both begin with the same adapter and mask the same tokens, so their first losses are apart by the term on general rows
/// alone, which at the beginning is the mean of the frozen maps' squares, whatever the domain's rows are.
#[rstest]
fn the_loss_is_that_of_the_domain_by_its_factor_and_that_of_general_rows(
    #[values("masked_lm", "causal_lm")] task: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let begun = |job: &Value, store: &str| {
        let mut job = job.clone();
        job["spec"]["checkpoint"]["store"] = json!(folder.path().join(store));
        let (outcome, heard) = run_alone(&job);
        assert_eq!(outcome.unwrap(), Outcome::Finished, "{store}");
        let first = heard.steps.lock().unwrap()[0].clone();
        (first.loss, first.metrics.get("mixda/old_knowledge").copied(), first.tokens)
    };
    let job = first(folder.path(), task);
    let (with, term, tokens) = begun(&job, "with");
    let (without, none, fewer) = begun(&without_general(&job), "without");
    let term = term.unwrap();
    assert!(none.is_none() && term > 1e-3 && tokens > fewer, "{term}, {tokens} and {fewer} tokens");
    near(&[with - term], &[without], 1e-5);
    let mut half = without_general(&job);
    half["spec"]["strategy"]["knowledge_loss_factor"] = json!(0.25);
    near(&[2.0 * begun(&half, "half").0], &[without], 1e-5);
    let mut other = job.clone();
    let rows: String = (0..19).map(|row| lm_row(row, 77)).collect();
    std::fs::write(folder.path().join("other.jsonl"), rows).unwrap();
    other["spec"]["data"]["source"] = json!(folder.path().join("other.jsonl"));
    let (_, same, _) = begun(&other, "other");
    near(&[same.unwrap()], &[term], 1e-5);
}

#[test]
fn stage_2_begins_with_what_stage_1_left_and_not_on_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, _) = run_alone(&first(folder.path(), "causal_lm"));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let step = folder.path().join("store/default/tiny/a/steps/00000005-g0001");
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(step.join(name)).unwrap()).unwrap() };
    assert_eq!(read("adapter_config.json")["pleach_method"], "domain");
    assert_eq!(read("manifest.json")["gate"], json!({"publishable": true, "findings": []}));
    let left = stored(folder.path());

    let mut job = first(folder.path(), "causal_lm");
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("second"));
    job["spec"]["tasks"][0]["adapter"] = json!({"method": "bottleneck"});
    let loaded = json!({"id": "mine", "init_from": step, "layers": [0, 1], "adapter_down_scale": 4});
    job["spec"]["strategy"] = json!({"method": "mixda", "load_adapters": [loaded], "gate": {"hidden": 4}});
    let (outcome, _) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(left == stored(folder.path()), "nothing of what it began with has changed");

    let llama = families().iter().find(|own| own.name() == "llama").unwrap();
    let other = folder.path().join("other");
    write_tiny(*llama, Some(HeadKind::CausalLm), &other, 2).unwrap();
    job["spec"]["backbone"]["path"] = json!(other);
    let error = run_alone(&job).0.unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_BASE, "{error}");
    assert!(error.message().contains("load_adapters[0].init_from"), "{error}");
}

#[rstest]
#[case::classes(json!({"/spec/data/task": "sequence_classification"}), code::BAD_VALUE, "without labels")]
#[case::few_general_rows(json!({"/spec/train/global_batch": 16}), code::DATA_TOO_SMALL, "general.jsonl")]
#[case::no_mask(json!({"/spec/data/mask_token_id": null}), code::BAD_VALUE, "spec.data.mask_token_id")]
#[case::no_domain_adapter(
    json!({"/spec/tasks/0/adapter": {"method": "bottleneck"}}), code::METHOD_CONFIG, "spec.strategy.stage"
)]
#[case::no_general_rows(
    json!({"/spec/strategy/general_data": null}), code::METHOD_CONFIG, "spec.strategy.general_data"
)]
fn what_cannot_be_trained_is_refused(#[case] changes: Value, #[case] expected: pleach_base::Code, #[case] says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = first(folder.path(), "masked_lm");
    job["spec"].as_object_mut().unwrap().remove("eval");
    for (path, value) in changes.as_object().unwrap() {
        *job.pointer_mut(path).unwrap() = value.clone();
    }
    let error = run_alone(&job).0.unwrap_err();
    assert_eq!(error.code(), expected, "{error}");
    assert!(error.message().contains(says), "{error}");
}

/// Masks need no strategy: any adapter learns from them.
#[test]
fn an_adapter_learns_by_masks_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = first(folder.path(), "masked_lm");
    job["spec"].as_object_mut().unwrap().remove("strategy");
    job["spec"]["tasks"][0]["adapter"] = json!({"method": "lora", "r": 4, "target_modules": "all-linear"});
    job["spec"]["train"]["max_steps"] = json!(12);
    let one = alone(&job, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    assert!(one.metrics[1]["loss"] < one.metrics[0]["loss"], "{:?}", one.metrics);
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!((&two[0].digests, &two[0].losses), (&one.digests, &one.losses), "{}", two[0].message);
}
