//! Training reproduces what PEFT and PyTorch recorded: losses, gradient norm, trained tensors.

use std::sync::Arc;

use pleach_base::{SystemClock, rng::Key};
use pleach_data::{Batch, Content, Encoded, Example};
use pleach_methods::Adapter;
use pleach_nn::{HeadOptions, Precision};
use pleach_spec::job::{DataTask, Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use pleach_train::{Engine, Objective, Silent, StepBatch, TaskSetup};
use tch::{Device, Tensor};

use crate::fixture::parity;

struct Case {
    folder: std::path::PathBuf,
    task: DataTask,
    io: std::collections::BTreeMap<String, Tensor>,
}

impl Case {
    fn open(name: &str, task: DataTask) -> Self {
        let folder = parity(name);
        let io = Tensor::read_safetensors(folder.join("io.safetensors")).unwrap().into_iter().collect();
        Self { folder, task, io }
    }

    /// The batch of a step as rows without padding.
    fn batch(&self, step: usize) -> Batch {
        let read = |what: &str| &self.io[&format!("batch.{step}.{what}")];
        let (ids, mask, labels) = (read("input_ids"), read("attention_mask"), read("labels"));
        let rows = ids.size()[0];
        let example = |row: i64| {
            let length = mask.get(row).sum(tch::Kind::Int64).int64_value(&[]);
            let ids: Vec<u32> = (0..length).map(|at| ids.int64_value(&[row, at]) as u32).collect();
            let input = Encoded { type_ids: vec![0; ids.len()], ids };
            let content = match self.task {
                DataTask::CausalLm => Content::Lm(input),
                _ => Content::Classification { input, label: labels.int64_value(&[row]) as u32 },
            };
            Example { sample_id: row as u64, row_task: None, content }
        };
        Batch::collate(self.task, &(0..rows).map(example).collect::<Vec<_>>()).unwrap()
    }
}

/// The twelve recorded steps; losses to 2e-4 relative, trained tensors to 5e-3.
fn reproduces(name: &str, task: DataTask, micro_batch: Option<usize>, determinism: Determinism) {
    tch::set_num_threads(1);
    let case = Case::open(name, task);
    let objective = Objective::of(task, 1.0);
    let options = HeadOptions { kind: Some(objective.head()), ..HeadOptions::default() };
    let (dir, config) = pleach_nn::open(&case.folder.join("model"), &options).unwrap();
    let model = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let imported = pleach_methods::import(&case.folder.join("adapter")).unwrap();
    let plan = Arc::new(imported.config.plan(config.as_ref()).unwrap());
    let values = imported.values().unwrap();
    let adapter =
        Adapter::build(Arc::clone(&imported.config), plan, model.as_ref(), Key::seed(0), Some(&values)).unwrap();
    let group = pleach_comm::local(Device::Cpu);
    let mut engine = Engine::new(model.as_ref(), group.as_ref(), Arc::new(Silent), SystemClock::shared());
    engine
        .add_task(TaskSetup {
            name: "t".into(),
            adapter,
            adapter_config: serde_json::Value::Object(imported.map.clone()),
            objective,
            optimizer: OptimizerSpec { lr: 5e-3, weight_decay: 0.01, ..OptimizerSpec::default() },
            schedule: ScheduleSpec::default(),
            total_steps: 12,
            max_grad_norm: 1.0,
            non_finite: NonFinite::Stop,
            determinism,
            micro_batch,
            checkpointing: false,
            own_steps: true,
        })
        .unwrap();
    let recorded: serde_json::Value =
        serde_json::from_slice(&std::fs::read(case.folder.join("train.json")).unwrap()).unwrap();
    for (step, expected) in recorded["losses"].as_array().unwrap().iter().enumerate() {
        let batch = case.batch(step);
        let rows = batch.len();
        let forwarded = engine
            .forward_backward(&"t".into(), &StepBatch { lanes: vec![(0, batch)], lane_rows: vec![rows] })
            .unwrap();
        let expected = expected.as_f64().unwrap();
        let off = (forwarded.loss - expected).abs() / expected;
        assert!(off < 2e-4, "{name} step {step}: loss {} instead of {expected}", forwarded.loss);
        let result = engine.optim_step(&"t".into(), false).unwrap();
        if step == 0 {
            let norm = recorded["grad_norm_step0"].as_f64().unwrap();
            assert!((result.grad_norm - norm).abs() / norm < 2e-4, "{name}: norm {} not {norm}", result.grad_norm);
        }
    }
    let saved = engine.save(&"t".into()).unwrap();
    assert!(saved.gate.publishable, "{:?}", saved.gate.findings);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let file = saved.files.iter().find(|file| file.name == "adapter_model.safetensors").unwrap();
    std::fs::write(&path, &file.bytes).unwrap();
    let ours: std::collections::BTreeMap<_, _> = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
    let theirs = Tensor::read_safetensors(case.folder.join("trained/adapter_model.safetensors")).unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (tensor, expected) in theirs {
        let off = (&ours[&tensor] - &expected).abs().max().double_value(&[]);
        assert!(off < 5e-3, "{name}: {tensor} is off by {off}");
    }
}

#[test]
fn llama_with_lora() {
    reproduces("llama-lora", DataTask::CausalLm, None, Determinism::Fast);
}

#[test]
fn llama_with_lora_row_by_row() {
    reproduces("llama-lora", DataTask::CausalLm, Some(1), Determinism::Strict);
}

#[test]
fn llama_with_rank_stabilised_lora() {
    reproduces("llama-lora-qv-rslora", DataTask::CausalLm, Some(2), Determinism::Fast);
}

#[test]
fn bert_with_lora_and_a_classifier() {
    reproduces("bert-lora", DataTask::SequenceClassification, None, Determinism::Fast);
}

#[test]
fn bert_with_lora_and_a_classifier_row_by_row() {
    reproduces("bert-lora", DataTask::SequenceClassification, Some(1), Determinism::Strict);
}

/// Every folder under `tests/fixtures/parity` is a case; a new folder is a new case here.
#[test]
fn every_recorded_case_is_repeated() {
    tch::set_num_threads(1);
    let folders: Vec<_> = std::fs::read_dir(parity("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let folders: Vec<_> = folders.into_iter().filter(|path| path.is_dir()).collect();
    assert!(folders.len() >= 3, "{folders:?}");
    let reports: Vec<_> = folders.iter().map(|folder| pleach_train::parity::run(folder)).collect();
    let failed: Vec<_> = reports.iter().filter(|report| !report.as_ref().is_ok_and(|report| report.within())).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Every folder under `tests/fixtures/reference/PAGE` is what a paper's own code computed for one method.
#[test]
fn what_the_papers_code_computed_is_repeated() {
    tch::set_num_threads(1);
    let list = |path: std::path::PathBuf| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = list(parity("../reference")).flat_map(list).collect();
    assert!(folders.len() >= 3, "{folders:?}");
    let repeated: Vec<_> = folders.iter().map(|folder| pleach_train::parity::repeat(folder)).collect();
    let failed: Vec<_> = repeated.iter().filter(|case| !case.as_ref().is_ok_and(|case| case.within())).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A recording that says more than this build understands does not count as repeated.
#[test]
fn a_recording_is_repeated_whole_or_not_at_all() {
    let from = parity("../reference/47-hydra/vtab-ffn");
    let changed = |from_text: &str, to: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("io.safetensors"), folder.path().join("io.safetensors")).unwrap();
        let text = std::fs::read_to_string(from.join("case.json")).unwrap();
        assert!(text.contains(from_text), "{from_text}");
        std::fs::write(folder.path().join("case.json"), text.replacen(from_text, to, 1)).unwrap();
        pleach_train::parity::repeat(folder.path())
    };
    use pleach_base::code;
    for (from_text, to, code, says) in [
        ("\"abs\": ", "\"other_abs\": 1.0, \"abs\": ", code::PARITY_CASE, "tolerance.other_abs"),
        ("\"r_par\": 2", "\"r_par\": 2, \"r_seq_too\": 1", code::UNKNOWN_KEY, "config.r_seq_too"),
        ("\"page\": 47", "\"page\": 4711", code::PARITY_CASE, "page 4711"),
        ("\"kind\": \"module\"", "\"kind\": \"codec\"", code::PARITY_CASE, "kind"),
    ] {
        let error = changed(from_text, to).unwrap_err();
        assert_eq!(error.code(), code, "{to}");
        assert!(error.message().contains(says), "{to}: {error}");
    }
    let outside = changed("\"scale\": 1.5", "\"scale\": 1.6").unwrap();
    assert!(!outside.within(), "{outside:?}");
}
