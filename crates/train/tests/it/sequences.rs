//! Jobs that learn classes task by task: any number of ranks, interruptions at and between the ends of tasks, the
//! accuracy matrix, and what the strategies promise of their tensors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_nn::{families, write_drawn};
use pleach_train::{Outcome, StopSignal};
use rstest::rstest;
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::fixture::{Heard, llama_job, parse, run, run_alone, stored};
use crate::gang::{alone, near, survives_kills};
use crate::processes::{Gang, gang};

/// Steps of each of the three tasks: two epochs over eight rows, four a step.
const STEPS: u64 = 4;

/// A row whose tokens are mostly those of its class.
fn row(number: usize, salt: usize) -> String {
    let label = number % 6;
    let length = 4 + (number * 5 + salt) % 6;
    let token = |at: usize| 10 + 30 * label + (number * 3 + at * at * 7 + salt) % 25;
    format!("{}\n", json!({"input_ids": (0..length).map(token).collect::<Vec<_>>(), "label": label}))
}

fn lae() -> Value {
    json!({"method": "lae", "num_increment_classes": 2, "num_epochs": 2, "num_freeze_epochs": 1, "ema_decay": 0.9})
}

fn mos() -> Value {
    json!({"method": "mos", "init_cls": 2, "increment": 2, "tuned_epoch": 2, "crct_epochs": 2,
           "ca_samples_per_class": 6})
}

fn sequential() -> Value {
    json!({"method": "sequential", "num_increment_classes": 2, "num_epochs": 2})
}

/// A strict job of three tasks with two classes each on a tiny bert.
fn job(folder: &Path, strategy: Value) -> Value {
    let bert = families().iter().find(|family| family.name() == "bert").unwrap();
    let model = folder.join("model");
    let mut config: Map<String, Value> = serde_json::from_str(bert.tiny()).unwrap();
    config.insert("num_labels".to_owned(), json!(6));
    write_drawn(&config, None, &model, 1).unwrap();
    let mut job = llama_job(folder, 1);
    let write = |name: &str, rows: usize, salt: usize| {
        let path = folder.join(name);
        std::fs::write(&path, (0..rows).map(|number| row(number, salt)).collect::<String>()).unwrap();
        path
    };
    let adapter = match strategy["method"].as_str() {
        Some("mos") => json!({"method": "adaptformer", "dim": 4}),
        _ => json!({"method": "lora", "r": 2, "target_modules": ["query", "value"]}),
    };
    job["spec"]["backbone"] = json!({"path": model, "num_labels": 6});
    job["spec"]["data"] =
        json!({"source": write("rows.jsonl", 24, 0), "task": "sequence_classification", "max_length": 16});
    job["spec"]["eval"] = json!({"source": write("held-out.jsonl", 18, 40)});
    job["spec"]["train"] = json!({"global_batch": 4, "lanes": 2, "epochs": 2, "optimizer": {"lr": 5e-3},
                                  "determinism": "strict", "seed": 3});
    job["spec"]["tasks"][0]["adapter"] = adapter;
    job["spec"]["strategy"] = strategy;
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"]["checkpoint"]["retention"] = json!({"last": 100});
    job["spec"]["checkpoint"]["max_lag"] = json!(0);
    job
}

#[rstest]
#[case::sequential(sequential())]
#[case::lae(lae())]
#[case::mos(mos())]
fn two_ranks_learn_what_one_learns(#[case] strategy: Value) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), strategy);
    let one = alone(&job, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    assert_eq!(one.digests.len() as u64, 3 * STEPS);
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!((two[0].end.as_str(), &two[0].digests), ("Finished", &one.digests), "{}", two[0].message);
    assert_eq!(two[0].losses, one.losses);
    job["spec"]["train"]["determinism"] = json!("fast");
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("fast"));
    let fast = gang(folder.path(), &job, 2, &Gang { generation: 2, ..Gang::default() });
    near(&fast[0].losses, &one.losses, 1e-3);
}

/// Killed at the end of a task and in the midst of the next.
#[rstest]
#[case::sequential(sequential())]
#[case::lae(lae())]
#[case::mos(mos())]
fn killed_ranks_leave_no_trace(#[case] strategy: Value) {
    let folder = tempfile::tempdir().unwrap();
    survives_kills("a sequence", &job(folder.path(), strategy), folder.path(), [STEPS, STEPS + 2]);
}

/// Ended in the midst of a task, at its end, and after its first step. A wish of one step is heard in the next.
#[rstest]
#[case::sequential(sequential())]
#[case::lae(lae())]
#[case::mos(mos())]
fn an_interruption_leaves_no_trace(#[case] strategy: Value) {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let uncut = job(whole.path(), strategy.clone());
    let (outcome, expected) = run_alone(&uncut);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let mut job = job(cut.path(), strategy);
    // The model's path is told in the adapter's configuration.
    job["spec"]["backbone"] = uncut["spec"]["backbone"].clone();
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut digests = Vec::new();
    for (generation, end) in (1..).zip([2, STEPS, STEPS + 1, 2 * STEPS + 3, 3 * STEPS]) {
        let stop = StopSignal::default();
        if digests.len() as u64 + 1 == end && end < 3 * STEPS {
            stop.drain("before the first step");
        }
        let wish = if end < 3 * STEPS { end - 1 } else { end };
        let heard = Arc::new(Heard::draining_at(wish, &stop));
        let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
        digests.extend(heard.digests());
        assert_eq!(digests.len() as u64, end, "generation {generation}");
        assert_eq!(outcome == Outcome::Finished, end == 3 * STEPS, "generation {generation}");
    }
    assert_eq!(digests, expected.digests());
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let of = |folder: &Path, step: &str| stored(folder)[&format!("{step}/{file}")].clone();
        assert!(of(cut.path(), "00000012-g0005") == of(whole.path(), "00000012-g0001"), "{file}");
    }
}

#[rstest]
#[case::sequential(sequential())]
#[case::lae(lae())]
#[case::mos(mos())]
fn the_matrix_of_accuracies_is_told_and_kept(#[case] strategy: Value) {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, heard) = run_alone(&job(folder.path(), strategy));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let evals = heard.evals.lock().unwrap();
    assert_eq!(evals.iter().map(|row| row.step).collect::<Vec<_>>(), [0, STEPS, 2 * STEPS, 3 * STEPS]);
    let ends = &evals[1..];
    let files = stored(folder.path());
    let config: Value = serde_json::from_slice(&files["00000012-g0001/adapter_config.json"]).unwrap();
    let matrix: Vec<Vec<f64>> = serde_json::from_value(config["continual"]["accuracy_matrix"].clone()).unwrap();
    assert_eq!(matrix.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3]);
    for (row, told) in matrix.iter().zip(ends) {
        for (task, accuracy) in row.iter().enumerate() {
            assert!((0.0..=1.0).contains(accuracy));
            assert!((told.metrics[&format!("accuracy_task_{task}")] - accuracy).abs() < 1e-6);
        }
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        assert!((told.metrics["average_accuracy"] - mean).abs() < 1e-6);
    }
    let lost = |task: usize, best: f64| best - matrix[2][task];
    let forgetting = (lost(0, matrix[0][0].max(matrix[1][0])) + lost(1, matrix[1][1])) / 2.0;
    assert!((config["continual"]["forgetting"].as_f64().unwrap() - forgetting).abs() < 1e-6);
}

fn tensors(files: &BTreeMap<String, Vec<u8>>, step: u64) -> BTreeMap<String, Tensor> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    std::fs::write(&path, &files[&format!("{step:08}-g0001/adapter_model.safetensors")]).unwrap();
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Whether the tensors that a name begins with are the same in two steps; `strip` is taken from the names of the second.
fn alike(a: &BTreeMap<String, Tensor>, of_a: &str, b: &BTreeMap<String, Tensor>, of_b: &str) -> bool {
    let mut own = a.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(of_a)?, tensor))).peekable();
    assert!(own.peek().is_some(), "no tensor begins with {of_a}");
    own.all(|(rest, tensor)| tensor.equal(&b[&format!("{of_b}{rest}")]))
}

#[test]
fn lae_rests_accumulates_and_leaves_old_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, _) = run_alone(&job(folder.path(), lae()));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let files: BTreeMap<_, _> = stored(folder.path()).into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
    let at = |step| tensors(&files, step);
    let module = "base_model.";
    let copy = "offline0.base_model.";
    assert!(alike(&at(STEPS), module, &at(STEPS), copy), "the copy begins equal to the module");
    // The second task rests for two steps, in which the equal copy stays; then the module moves and the copy less.
    assert!(alike(&at(STEPS), module, &at(STEPS + 2), module) && alike(&at(STEPS), copy, &at(STEPS + 2), copy));
    assert!(!alike(&at(STEPS), module, &at(STEPS + 3), module) && !alike(&at(STEPS), copy, &at(STEPS + 3), copy));
    // In the third the module rests and the copy closes in.
    assert!(alike(&at(2 * STEPS), module, &at(2 * STEPS + 2), module));
    assert!(!alike(&at(2 * STEPS), copy, &at(2 * STEPS + 2), copy));
    assert!(alike(&at(STEPS), "classifier.0.", &at(3 * STEPS), "classifier.0."), "old rows stay to the bit");
    assert!(!alike(&at(STEPS), "classifier.1.", &at(2 * STEPS), "classifier.1."));
}

#[test]
fn mos_goes_on_from_the_last_adapter_and_never_changes_stored_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, _) = run_alone(&job(folder.path(), mos()));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let files: BTreeMap<_, _> = stored(folder.path()).into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
    let at = |step| tensors(&files, step);
    assert!(alike(&at(STEPS), "base_model.", &at(STEPS), "task0.base_model."), "stored, and gone on from");
    // Evaluated after every task: not a bit of what was stored changes.
    assert!(alike(&at(STEPS), "task0.", &at(3 * STEPS), "task0."));
    assert!(alike(&at(2 * STEPS), "task1.", &at(3 * STEPS), "task1."));
    assert!(!alike(&at(STEPS), "task0.base_model.", &at(2 * STEPS), "task1.base_model."));
    let kept = at(3 * STEPS);
    let prototypes = &kept["mos.prototypes"];
    assert!((0..6).all(|class| prototypes.get(class).abs().max().double_value(&[]) > 0.0));
    assert!(at(STEPS)["mos.prototypes"].get(2).abs().max().double_value(&[]) == 0.0);
    assert!(prototypes.get(0).equal(&at(STEPS)["mos.prototypes"].get(0)), "the first adapter's, for ever");
}

/// Two rows of class 5 are cut down to one, and to none.
#[rstest]
#[case::one(1, "one row")]
#[case::none(0, "no row")]
fn a_class_without_enough_rows_for_a_covariance_is_told(#[case] left: usize, #[case] said: &str) {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), mos());
    let all = (0..24).map(|number| (number % 6, row(number, 0)));
    let mut kept = 0;
    // The others of the class are of its task's other class: as many rows make as many steps.
    let rows = all.map(|(label, text)| {
        kept += usize::from(label == 5);
        if label == 5 && kept > left { text.replace("\"label\":5", "\"label\":4") } else { text }
    });
    std::fs::write(folder.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
    let (outcome, heard) = run_alone(&job);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let lines = heard.lines.lock().unwrap();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("a covariance takes two")).collect();
    assert!(matches!(told[..], [line] if line.contains(&format!("task 2: class 5 has {said}"))), "{told:?}");
}

/// A step of other classes than the job's is no beginning for it.
#[test]
fn a_checkpoint_of_other_classes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), lae());
    let (stop, group) = (StopSignal::default(), pleach_comm::local(tch::Device::Cpu));
    let heard = Arc::new(Heard::draining_at(1, &stop));
    run(parse(&job), group.as_ref(), 1, &heard, stop).unwrap();
    job["spec"]["strategy"]["tasks"] = json!([[0, 1, 2], [3, 4, 5]]);
    let heard = Arc::new(Heard::default());
    let error = run(parse(&job), group.as_ref(), 2, &heard, StopSignal::default()).unwrap_err();
    assert_eq!(error.code(), pleach_base::code::ADAPTER_FORMAT, "{error:?}");
    assert!(error.message().contains("classifier.0.weight has shape [2, 32]"), "{error}");
    assert!(error.hint_text().unwrap().contains("another name"), "{error:?}");
}

#[test]
fn a_sequence_takes_the_epochs_that_the_job_says_and_needs_classes() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = job(folder.path(), lae());
    other["spec"]["train"]["epochs"] = json!(3);
    let error = run_alone(&other).0.unwrap_err();
    assert_eq!(error.code(), pleach_base::code::BAD_VALUE);
    assert!(error.message().contains("spec.train.epochs: is 3"), "{error}");
    let mut missing = job(folder.path(), lae());
    missing["spec"]["strategy"]["tasks"] = json!([[0, 1], [7]]);
    let error = run_alone(&missing).0.unwrap_err();
    assert!(error.message().contains("the model has no class 7"), "{error}");
}
