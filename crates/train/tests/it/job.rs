//! The job loop on one rank: checkpoints, resumption, evaluation, several tasks, bad input.

use std::sync::Arc;

use pleach_base::code;
use pleach_train::{Observer, Outcome, StopSignal};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Heard, bert_job, llama_job, lm_row, parity, parse, run, run_alone, stored};

fn manifest(folder: &std::path::Path, step: &str) -> Value {
    serde_json::from_slice(&stored(folder)[&format!("{step}/manifest.json")]).unwrap()
}

#[test]
fn a_job_leaves_peft_folders_with_manifests_that_tell_all() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, heard) = run_alone(&llama_job(folder.path(), 30));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let manifest = manifest(folder.path(), "00000008-g0001");
    let meta = &manifest["meta"];
    assert_eq!((meta["step"].as_u64(), meta["cursor"]["step"].as_u64()), (Some(8), Some(8)));
    assert_eq!((meta["epoch"].as_f64(), meta["method"].as_str()), (Some(2.0), Some("lora")));
    assert_eq!(meta["base_fingerprint"].as_str().unwrap().len(), 64);
    let last = heard.evals.lock().unwrap().last().unwrap().clone();
    assert_eq!(meta["metrics"]["eval/loss"].as_f64(), Some(last.metrics["loss"]));
    assert_eq!(meta["metrics"]["train/loss"].as_f64(), heard.losses().last().copied());
    assert_eq!(manifest["gate"], json!({"publishable": true, "findings": []}));
    let config: Value = serde_json::from_slice(&stored(folder.path())["00000008-g0001/adapter_config.json"]).unwrap();
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(4)));
    assert!(heard.lines.lock().unwrap().iter().any(|line| line.contains("trainable params: 9,344 ||")));
    assert!(heard.tasks.lock().unwrap().last().unwrap().done);
    let durable = heard.durable.lock().unwrap().last().unwrap().clone();
    assert_eq!((durable.folder.as_str(), durable.publishable), ("default/tiny/a/steps/00000008-g0001", true));
}

#[test]
fn the_same_job_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let job = llama_job(a.path(), 20);
    let mut again = job.clone();
    again["spec"]["checkpoint"]["store"] = json!(b.path().join("store"));
    run_alone(&job).0.unwrap();
    run_alone(&again).0.unwrap();
    let last = |folder: &std::path::Path| {
        let mut files = stored(folder);
        files.retain(|name, _| name.starts_with("00000006"));
        files
    };
    assert_eq!(last(a.path()).len(), 4);
    assert!(last(a.path()) == last(b.path()), "files differ");
}

#[test]
fn evaluation_is_at_the_start_every_n_and_at_the_end_and_counts_each_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    job["spec"]["eval"]["every"] = json!(3);
    let (_, heard) = run_alone(&job);
    let evals = heard.evals.lock().unwrap();
    assert_eq!(evals.iter().map(|row| (row.step, row.samples)).collect::<Vec<_>>(), [(0, 10), (3, 10), (4, 10)]);
    // By hand: the loss at the start is that of a model which gives every row its own mean over all target tokens.
    assert!(evals[0].metrics["loss"] > 5.0 && evals[0].metrics["loss"] < 6.5, "{:?}", evals[0].metrics);
}

/// Methods whose state is more than the tensors of the adapter's file, and one whose is not.
#[rstest]
#[case::lora(json!({"method": "lora", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}))]
#[case::frozen_tensors_in_the_file(json!({"method": "vera", "r": 4}))]
#[case::state_of_its_own(json!({"method": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2}))]
#[case::another_form_in_the_file(json!({"method": "p_tuning", "num_virtual_tokens": 3}))]
fn an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(#[case] adapter: Value) {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder: &std::path::Path| {
        let mut job = llama_job(folder, 30);
        job["spec"]["tasks"][0]["adapter"] = adapter.clone();
        job
    };
    let (outcome, expected) = run_alone(&of(whole.path()));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let job = of(cut.path());
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut digests = Vec::new();
    for generation in 1..=4 {
        let stop = StopSignal::default();
        let heard = Arc::new(Heard::draining_at(2 * generation - 1, &stop));
        let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
        digests.extend(heard.digests());
        assert_eq!(outcome == Outcome::Finished, generation == 4, "generation {generation}");
    }
    assert_eq!(digests, expected.digests());
    let file = "adapter_model.safetensors";
    let ended = stored(cut.path())[&format!("00000008-g0004/{file}")].clone();
    assert!(ended == stored(whole.path())[&format!("00000008-g0001/{file}")]);
}

/// The network of P-tuning is not in the adapter's file, but beside it.
#[test]
fn a_job_starts_from_what_another_trained_and_not_from_what_it_published() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    job["spec"]["tasks"][0]["adapter"] = json!({"method": "p_tuning", "num_virtual_tokens": 3});
    let (outcome, first) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    job["metadata"]["name"] = json!("another");
    job["spec"]["tasks"][0]["init_from"] = json!(folder.path().join("store/default/tiny/a/steps/00000004-g0001"));
    let (outcome, second) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let ended = first.evals.lock().unwrap().last().unwrap().metrics.clone();
    assert_eq!(second.evals.lock().unwrap()[0].metrics, ended);
}

/// `lora_B` at another rate than `lora_A`: with a rate that is nearly nothing it stays where it was.
#[test]
fn a_method_sets_the_rate_of_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    job["spec"]["train"]["optimizer"]["weight_decay"] = json!(0.0);
    job["spec"]["tasks"][0]["adapter"]["loraplus_lr_ratio"] = json!(1e-6);
    assert_eq!(run_alone(&job).0.unwrap(), Outcome::Finished);
    let path = folder.path().join("store/default/tiny/a/steps/00000004-g0001/adapter_model.safetensors");
    for (name, tensor) in tch::Tensor::read_safetensors(path).unwrap() {
        let largest = tensor.abs().max().double_value(&[]);
        assert_eq!(name.contains("lora_B"), largest < 1e-6, "{name}: {largest}");
    }
}

/// Sequences that fill the model's positions have to be cut to leave room for virtual tokens.
#[rstest]
#[case(json!({"method": "prompt", "num_virtual_tokens": 5}))]
#[case(json!({"method": "prefix", "num_virtual_tokens": 5}))]
fn virtual_tokens_take_room_from_the_sequence(#[case] adapter: Value) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    let ids: Vec<_> = (0..200).map(|at| at % 250).collect();
    std::fs::write(folder.path().join("train.jsonl"), format!("{}\n", json!({"input_ids": ids})).repeat(16)).unwrap();
    job["spec"]["data"]["max_length"] = json!(500);
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["tasks"][0]["adapter"] = adapter;
    let (outcome, heard) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let positions = 128;
    assert_eq!(heard.steps.lock().unwrap()[0].tokens, 8 * (positions - 5));
}

#[test]
fn a_manifest_tells_only_what_was_measured_on_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let stop = StopSignal::default();
    let heard = Arc::new(Heard::draining_at(1, &stop));
    let group = pleach_comm::local(tch::Device::Cpu);
    run(parse(&llama_job(folder.path(), 30)), group.as_ref(), 1, &heard, stop).unwrap();
    assert_eq!(heard.evals.lock().unwrap()[0].step, 0, "evaluated before the first step");
    let stored = stored(folder.path());
    let (name, manifest) = stored.iter().find(|(name, _)| name.ends_with("manifest.json")).unwrap();
    assert!(name.starts_with("0000000"), "{name}");
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let metrics = manifest["meta"]["metrics"].as_object().unwrap();
    assert_eq!(metrics.keys().collect::<Vec<_>>(), ["train/loss"]);
}

#[test]
fn a_finished_job_has_nothing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let job = llama_job(folder.path(), 16);
    run_alone(&job).0.unwrap();
    let group = pleach_comm::local(tch::Device::Cpu);
    let heard = Arc::new(Heard::default());
    let outcome = run(parse(&job), group.as_ref(), 2, &heard, StopSignal::default()).unwrap();
    assert_eq!((outcome, heard.losses().len()), (Outcome::Finished, 0));
    assert_eq!(heard.durable.lock().unwrap()[0].step.0, 4, "what is durable is told again");
}

#[test]
fn tasks_take_turns_and_each_is_as_it_is_alone() {
    let (both, single) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let strict = |folder: &std::path::Path| {
        let mut job = llama_job(folder, 16);
        job["spec"]["train"]["determinism"] = json!("strict");
        job
    };
    let mut job = strict(both.path());
    let mut second = job["spec"]["tasks"][0].clone();
    second["name"] = json!("b");
    second["adapter"]["r"] = json!(2);
    second["optimizer"] = json!({"name": "sgd", "lr": 0.1, "momentum": 0.9});
    job["spec"]["tasks"].as_array_mut().unwrap().push(second);
    let (outcome, heard) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let steps = heard.steps.lock().unwrap();
    let order: String = steps.iter().map(|row| row.task.as_str()).collect();
    assert_eq!(order, "abababab");
    let (_, alone) = run_alone(&strict(single.path()));
    let of_a: Vec<_> = steps.iter().filter(|row| row.task.as_str() == "a").map(|row| row.digest.clone()).collect();
    assert_eq!(of_a, alone.digests());
    let of_b: Vec<_> = steps.iter().filter(|row| row.task.as_str() == "b").map(|row| row.loss).collect();
    assert!(of_b[3] < of_b[0], "{of_b:?}");
}

#[test]
fn a_checkpoint_of_another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    run_alone(&job).0.unwrap();
    job["spec"]["backbone"]["path"] = json!(other_base(folder.path()));
    let group = pleach_comm::local(tch::Device::Cpu);
    let resumed = run(parse(&job), group.as_ref(), 2, &Arc::new(Heard::default()), StopSignal::default());
    assert_eq!(resumed.unwrap_err().code(), code::ADAPTER_BASE);
    job["metadata"]["name"] = json!("another");
    job["spec"]["tasks"][0]["init_from"] = json!(folder.path().join("store/default/tiny/a/steps/00000004-g0001"));
    assert_eq!(run_alone(&job).0.unwrap_err().code(), code::ADAPTER_BASE);
}

/// The same architecture with one weight changed.
fn other_base(folder: &std::path::Path) -> std::path::PathBuf {
    let (from, to) = (parity("llama-lora").join("model"), folder.join("other"));
    std::fs::create_dir(&to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut tensors = tch::Tensor::read_safetensors(from.join("model.safetensors")).unwrap();
    let _ = tensors[0].1.fill_(0.5);
    tch::Tensor::write_safetensors(&tensors, to.join("model.safetensors")).unwrap();
    to
}

#[test]
fn a_published_adapter_is_where_another_job_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    let (_, first) = run_alone(&job);
    job["metadata"]["name"] = json!("another");
    job["spec"]["tasks"][0]["init_from"] = json!(folder.path().join("store/default/tiny/a/steps/00000004-g0001"));
    let (outcome, second) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let ended = first.evals.lock().unwrap().last().unwrap().metrics.clone();
    assert_eq!(second.evals.lock().unwrap()[0].metrics, ended);
}

#[test]
fn bf16_keeps_the_adapter_in_float32_and_learns() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 30);
    job["spec"]["backbone"]["dtype"] = json!("bf16");
    let (outcome, heard) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let evals = heard.evals.lock().unwrap();
    assert!(evals[1].metrics["loss"] < evals[0].metrics["loss"], "{evals:?}");
    let path = folder.path().join("store/default/tiny/a/steps/00000008-g0001/adapter_model.safetensors");
    for (name, tensor) in tch::Tensor::read_safetensors(path).unwrap() {
        assert_eq!(tensor.kind(), tch::Kind::Float, "{name}");
    }
}

#[test]
fn malformed_rows_are_counted_and_fail_past_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    let rows: String = (0..16).map(|row| lm_row(row, 0)).collect();
    std::fs::write(folder.path().join("train.jsonl"), format!("{rows}{{broken\n")).unwrap();
    let error = run_alone(&job).0.unwrap_err();
    assert_eq!(error.code(), code::DATA_ROW);
    assert!(error.chain().contains("train.jsonl:17"), "{}", error.chain());
    job["spec"]["data"]["max_bad_rows"] = json!(1);
    let (outcome, heard) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(heard.tasks.lock().unwrap()[0].bad_rows, 1);
}

#[test]
fn a_batch_larger_than_the_dataset_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run_alone(&llama_job(folder.path(), 7)).0.unwrap_err().code(), code::DATA_TOO_SMALL);
}

/// Panics where libtorch would.
struct Panics;

impl Observer for Panics {
    fn ready(&self) {
        panic!("size mismatch\nC++ stack trace");
    }
}

#[test]
fn a_panic_fails_the_job_and_not_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let group = pleach_comm::local(tch::Device::Cpu);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let job = parse(&llama_job(folder.path(), 16));
    let cx = pleach_train::JobContext {
        tenant: "default".into(),
        id: "tiny".into(),
        job,
        fence: pleach_base::Fence::default(),
        heads: Default::default(),
        recorded: pleach_train::Recorded::at_once(),
        feed: None,
        group: group.as_ref(),
        observer: Arc::new(Panics),
        stop: StopSignal::default(),
        runtime: runtime.handle().clone(),
        clock: pleach_base::SystemClock::shared(),
    };
    let error = pleach_train::run_job(cx, &mut pleach_train::Warm::default()).unwrap_err();
    assert_eq!(error.code(), code::INTERNAL);
    assert_eq!(error.message(), "the training thread panicked: size mismatch");
}

/// Blocks that are run again give the bits of blocks whose graph was kept, with dropout, whatever the loss.
#[rstest]
#[case::language(false)]
#[case::retrieval(true)]
fn activation_checkpointing_changes_memory_and_nothing_else(#[case] retrieval: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = if retrieval { bert_job(folder.path(), 20) } else { llama_job(folder.path(), 20) };
    job["spec"]["tasks"][0]["adapter"]["lora_dropout"] = json!(0.1);
    // Two passes in both, so that the same sums are made.
    job["spec"]["train"]["micro_batch"] = json!(4);
    let (outcome, kept) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    job["spec"]["train"]["activation_checkpointing"] = json!(true);
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("again"));
    let (outcome, again) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(again.losses(), kept.losses());
    assert_eq!(again.digests(), kept.digests());
}

/// What was made ready before the gang is there is not made again: the model and the rows may be gone by then.
#[test]
fn a_prepared_job_begins_without_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(parity("llama-lora").join("model")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    job["spec"]["backbone"]["path"] = json!(model);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut warm = pleach_train::Warm::default();
    let preparation = pleach_train::Preparation {
        tenant: "default".into(),
        id: "tiny".into(),
        job: parse(&job),
        device: tch::Device::Cpu,
        observer: Arc::new(pleach_train::Silent),
        stop: StopSignal::default(),
        runtime: runtime.handle().clone(),
    };
    pleach_train::prepare(&preparation, &mut warm).unwrap();
    std::fs::remove_dir_all(&model).unwrap();
    std::fs::rename(folder.path().join("train.jsonl"), folder.path().join("away.jsonl")).unwrap();
    std::fs::remove_file(folder.path().join("eval.jsonl")).unwrap();
    let cx = pleach_train::JobContext {
        tenant: "default".into(),
        id: "tiny".into(),
        job: parse(&job),
        fence: pleach_base::Fence::default(),
        heads: Default::default(),
        recorded: pleach_train::Recorded::at_once(),
        feed: None,
        group: group.as_ref(),
        observer: Arc::new(pleach_train::Silent),
        stop: StopSignal::default(),
        runtime: runtime.handle().clone(),
        clock: pleach_base::SystemClock::shared(),
    };
    assert_eq!(pleach_train::run_job(cx, &mut warm).unwrap(), Outcome::Finished);
}
