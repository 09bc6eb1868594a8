//! Jobs whose rows name tasks: any number of ranks, an interruption, and tasks without rows in a step.

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{SystemClock, code};
use pleach_data::{Batch, Content, Encoded, Example};
use pleach_methods::Adapter;
use pleach_nn::Precision;
use pleach_spec::job::{DataTask, Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use pleach_train::{Engine, Objective, Outcome, Silent, StepBatch, StopSignal, TaskSetup};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Heard, llama_job, lm_row, parity, parse, run, run_alone};
use crate::gang::alone;
use crate::processes::{Gang, gang};

/// Rows of three tasks, the third of one row in ten.
fn rows(folder: &Path, count: usize) {
    let row = |row: usize| {
        let mut fields: Value = serde_json::from_str(&lm_row(row, 0)).unwrap();
        fields["task"] = if row % 10 == 9 { json!("c") } else { json!(["a", "b"][row % 2]) };
        format!("{fields}\n")
    };
    std::fs::write(folder.join("train.jsonl"), (0..count).map(row).collect::<String>()).unwrap();
}

fn job(folder: &Path, which: &str) -> Value {
    let mut job = llama_job(folder, 1);
    rows(folder, 30);
    let spec = job["spec"].as_object_mut().unwrap();
    spec.remove("eval");
    spec["train"]["determinism"] = json!("strict");
    spec["train"]["epochs"] = json!(1);
    spec["checkpoint"]["every"] = json!(1);
    let vl = |sharing: &str| {
        json!({"method": "vl_multitask", "sharing": sharing, "reduction_factor": 4, "task_embedding_dim": 6, "hidden": 5,
               "use_tasks_prompts": false, "tasks": [{"name": "a"}, {"name": "b", "batch_ratio": 0.5}, {"name": "c"}]})
    };
    if which == "router" {
        let router = json!({"method": "mhr", "num_experts": 3, "n_splits": 2, "task_names": ["a", "b", "c"],
                            "module_logits_relaxed_bernoulli": true, "adapters_learning_rate": 5e-2});
        spec.insert("router".to_owned(), router);
    }
    let (adapter, strategy) = match which {
        "router" => (json!({"method": "lora", "r": 2}), None),
        "poly" => (
            json!({"method": "poly", "r": 2, "n_skills": 3, "n_splits": 2, "task_names": ["a", "b", "c"],
                   "module_logits_relaxed_bernoulli": true}),
            None,
        ),
        sharing => (json!({"method": "bottleneck"}), Some(vl(sharing))),
    };
    spec["tasks"][0]["adapter"] = adapter;
    if let Some(strategy) = strategy {
        spec.insert("strategy".to_owned(), strategy);
    }
    job
}

#[rstest]
fn any_number_of_ranks_and_an_interruption(
    #[values("poly", "router", "single", "multiple", "share_up", "hyper")] which: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let [one, two, cut] = ["one", "two", "cut"].map(|name| folder.path().join(name));
    for folder in [&one, &two, &cut] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let expected = alone(&job(&one, which), &one);
    assert_eq!(expected.end, "Finished", "{which}: {}", expected.message);
    let both = gang(&two, &job(&two, which), 2, &Gang::default());
    assert_eq!(
        (both[0].end.as_str(), &both[0].digests),
        ("Finished", &expected.digests),
        "{which}: {}",
        both[0].message
    );

    let group = pleach_comm::local(tch::Device::Cpu);
    let job = job(&cut, which);
    let mut digests = Vec::new();
    for generation in 1..=2 {
        let stop = StopSignal::default();
        let heard = Arc::new(Heard::draining_at(if generation == 1 { 2 } else { 99 }, &stop));
        let outcome = run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
        digests.extend(heard.digests());
        assert_eq!(outcome == Outcome::Finished, generation == 2, "{which}: generation {generation}");
    }
    assert_eq!(digests, expected.digests, "{which}");
}

/// What belongs to a task without rows in a step does not move, though there are momenta and decay; what belongs to one
/// with rows does, and counts its own updates.
#[rstest]
fn absent_tasks_are_left_as_they_are(#[values("poly", "router", "multiple")] which: &str) {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let job = parse(&job(folder.path(), which));
    let (dir, config) =
        pleach_nn::open(&parity("llama-lora").join("model"), &pleach_methods::head_options(&job).unwrap()).unwrap();
    let model = config.build(&dir, tch::Device::Cpu, Precision::Fp32).unwrap();
    let task = pleach_methods::plan_job(&job, config.as_ref()).unwrap().tasks.remove(0);
    let adapter = Adapter::build(Arc::clone(&task.config), Arc::clone(&task.plan), model.as_ref(), Key::seed(1), None);
    let group = pleach_comm::local(tch::Device::Cpu);
    let mut engine = Engine::new(model.as_ref(), group.as_ref(), Arc::new(Silent), SystemClock::shared());
    let setup = TaskSetup {
        name: "t".into(),
        adapter: adapter.unwrap(),
        adapter_config: Value::Object(serde_json::Map::new()),
        objective: Objective::of(DataTask::CausalLm, 1.0),
        optimizer: OptimizerSpec { lr: 5e-3, weight_decay: 0.1, ..OptimizerSpec::default() },
        schedule: ScheduleSpec::default(),
        total_steps: 5,
        max_grad_norm: 1.0,
        non_finite: NonFinite::Stop,
        determinism: Determinism::Fast,
        micro_batch: Some(1),
        checkpointing: false,
        own_steps: true,
    };
    engine.add_task(setup).unwrap();
    let tensors = |engine: &Engine<'_>| {
        let files = engine.save(&"t".into()).unwrap().files;
        read(&files.iter().find(|file| file.name == "adapter_model.safetensors").unwrap().bytes)
    };
    let mut before = tensors(&engine);
    for tasks in [&[0u32, 2][..], &[1], &[0, 0], &[2, 1], &[0]] {
        let example = |(row, task): (usize, &u32)| {
            let ids = (0..6).map(|at| (row as u32 * 31 + at * 17 + task) % 250).collect::<Vec<_>>();
            let content = Content::Lm(Encoded { type_ids: vec![0; ids.len()], ids });
            Example { sample_id: row as u64, row_task: Some(*task), content }
        };
        let rows: Vec<_> = tasks.iter().enumerate().map(example).collect();
        let batch = Batch::collate(DataTask::CausalLm, &rows).unwrap();
        engine
            .forward_backward(&"t".into(), &StepBatch { lanes: vec![(0, batch)], lane_rows: vec![rows.len()] })
            .unwrap();
        engine.optim_step(&"t".into(), false).unwrap();
        let after = tensors(&engine);
        let changed: Vec<bool> = (0..3).map(|task| of_task(&before, task) != of_task(&after, task)).collect();
        let present: Vec<bool> = (0..3).map(|task| tasks.contains(&task)).collect();
        assert_eq!(changed, present, "{which}: rows of {tasks:?}");
        before = after;
    }
    let nameless = Example {
        sample_id: 0,
        row_task: None,
        content: Content::Lm(Encoded { ids: vec![1, 2], type_ids: vec![0; 2] }),
    };
    let batch = Batch::collate(DataTask::CausalLm, &[nameless]).unwrap();
    let error =
        engine.forward_backward(&"t".into(), &StepBatch { lanes: vec![(0, batch)], lane_rows: vec![1] }).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG, "{error}");
}

fn read(bytes: &[u8]) -> Vec<(String, Vec<u8>, Vec<usize>)> {
    let file = safetensors(bytes);
    file.into_iter().map(|(name, shape, data)| (name, data, shape)).collect()
}

/// Names, shapes and bytes of a safetensors file.
fn safetensors(bytes: &[u8]) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, about)| {
            let numbers = |key: &str| -> Vec<usize> {
                about[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let offsets = numbers("data_offsets");
            (name.clone(), numbers("shape"), data[offsets[0]..offsets[1]].to_vec())
        })
        .collect()
}

/// The bytes of all that belongs to a task.
fn of_task(tensors: &[(String, Vec<u8>, Vec<usize>)], task: u32) -> Vec<Vec<u8>> {
    let own = format!("tasks.{}.", ["a", "b", "c"][task as usize]);
    tensors
        .iter()
        .filter_map(|(name, data, shape)| {
            if name.ends_with("module_logits") {
                let (row, task) = (data.len() / shape[0], task as usize);
                return Some(data[task * row..(task + 1) * row].to_vec());
            }
            name.starts_with(&own).then(|| data.clone())
        })
        .collect()
}

#[test]
fn rows_without_a_task_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "poly");
    let refused = |row: &str| {
        std::fs::write(folder.path().join("train.jsonl"), row.repeat(10)).unwrap();
        let error = run_alone(&job).0.unwrap_err();
        assert_eq!(error.code(), code::DATA_ROW, "{error:?}");
        format!("{error:?}")
    };
    assert!(refused("{\"input_ids\": [1, 2, 3]}\n").contains("task"));
    assert!(refused("{\"input_ids\": [1, 2, 3], \"task\": \"d\"}\n").contains("none of the adapter's tasks"));
    assert!(refused("{\"input_ids\": [1, 2, 3], \"task\": 3}\n").contains("none of the adapter's tasks"));
}
