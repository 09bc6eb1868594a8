//! What the gate says of a step: that its files give the adapter again, for every fault that files can have.

use std::sync::Arc;

use pleach_base::SystemClock;
use pleach_base::rng::Key;
use pleach_data::{Batch, Content, Encoded, Example};
use pleach_methods::Adapter;
use pleach_nn::{HeadOptions, Precision};
use pleach_spec::job::{DataTask, Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use pleach_train::{Engine, Objective, Saved, Silent, StepBatch, TaskSetup};
use serde_json::{Value, json};
use tch::Device;

use crate::fixture::{llama_job, parity, run_alone, stored};

/// The recorded adapter after one step, saved with a configuration that was changed.
fn saved(case: &str, change: impl FnOnce(&mut Value)) -> Saved {
    tch::set_num_threads(1);
    let folder = parity(case);
    let (dir, config) = pleach_nn::open(&folder.join("model"), &HeadOptions::default()).unwrap();
    let model = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let imported = pleach_methods::import(&folder.join("adapter")).unwrap();
    let plan = Arc::new(imported.config.plan(config.as_ref()).unwrap());
    let values = imported.values().unwrap();
    let adapter =
        Adapter::build(Arc::clone(&imported.config), plan, model.as_ref(), Key::seed(0), Some(&values)).unwrap();
    let mut adapter_config = Value::Object(imported.map.clone());
    change(&mut adapter_config);
    let group = pleach_comm::local(Device::Cpu);
    let mut engine = Engine::new(model.as_ref(), group.as_ref(), Arc::new(Silent), SystemClock::shared());
    let setup = TaskSetup {
        name: "t".into(),
        adapter,
        adapter_config,
        objective: Objective::CausalLm,
        optimizer: OptimizerSpec { lr: 5e-3, ..OptimizerSpec::default() },
        schedule: ScheduleSpec::default(),
        total_steps: 12,
        max_grad_norm: 1.0,
        non_finite: NonFinite::Stop,
        determinism: Determinism::Fast,
        micro_batch: None,
        checkpointing: false,
        own_steps: true,
    };
    engine.add_task(setup).unwrap();
    let row = |row: u64| {
        let ids: Vec<u32> = (0..9).map(|at| (row as u32 * 31 + at * at * 17) % 250).collect();
        Example { sample_id: row, row_task: None, content: Content::Lm(Encoded { type_ids: vec![0; ids.len()], ids }) }
    };
    let batch = Batch::collate(DataTask::CausalLm, &[row(1), row(2)]).unwrap();
    engine.forward_backward(&"t".into(), &StepBatch { lanes: vec![(0, batch)], lane_rows: vec![2] }).unwrap();
    engine.optim_step(&"t".into(), false).unwrap();
    engine.save(&"t".into()).unwrap()
}

#[test]
fn files_that_give_the_adapter_again_pass() {
    for case in ["llama-lora", "llama-lora-qv-rslora"] {
        let gate = saved(case, |_| {}).gate;
        assert!(gate.publishable && gate.findings.is_empty(), "{case}: {:?}", gate.findings);
    }
}

#[test]
fn files_that_do_not_are_found_out() {
    let cases: [(&str, Value, &str); 4] = [
        ("lora_alpha", json!(77), "read back, its outputs are off by"),
        ("peft_type", json!("LORE"), "its files cannot be read back: "),
        ("r", json!(3), "its files cannot be read back: "),
        ("target_modules", json!(["q_proj"]), "its files cannot be read back: "),
    ];
    for (key, value, finding) in cases {
        let gate = saved("llama-lora-qv-rslora", |config| config[key] = value.clone()).gate;
        assert!(!gate.publishable && gate.findings[0].starts_with(finding), "{key}: {:?}", gate.findings);
        assert!(
            !gate.findings[0].contains("/tmp"),
            "the manifest is the same wherever it is written: {:?}",
            gate.findings
        );
    }
}

/// A rate of zero at a step trains nothing, whatever the gradients: such a step is stored and is nobody's.
#[test]
fn an_untrained_step_is_durable_and_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    job["spec"]["train"]["optimizer"]["lr"] = json!(0.0);
    let (outcome, heard) = run_alone(&job);
    outcome.unwrap();
    assert!(heard.durable.lock().unwrap().iter().all(|row| !row.publishable));
    let files = stored(folder.path());
    let manifest: Value = serde_json::from_slice(&files["00000004-g0001/manifest.json"]).unwrap();
    assert_eq!(manifest["gate"]["publishable"], false);
    assert!(manifest["gate"]["findings"][0].as_str().unwrap().contains("no tensor has had a gradient"), "{manifest}");
}
