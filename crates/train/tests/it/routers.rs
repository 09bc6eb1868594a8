//! Routers in jobs: losses over the whole batch whatever its cut, experts that are tasks or folders, experts shared
//! between ranks.

use std::path::Path;

use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{llama_job, parse, run_alone};
use crate::gang::near;
use crate::processes::{Gang, Report, gang};

/// The job in one process, in a store of its own.
fn alone(job: &Value, folder: &Path) -> Report {
    let stores = std::fs::read_dir(folder).unwrap().count();
    let own = folder.join(format!("run-{stores}"));
    std::fs::create_dir(&own).unwrap();
    crate::gang::alone(job, &own)
}

/// Mixtures of three experts with losses large enough to be seen.
fn mixed(folder: &Path, options: &Value) -> Value {
    let mut job = llama_job(folder, 20);
    let mut router = json!({"method": "mixlora", "num_experts": 3, "router_init_range": 0.3, "router_aux_loss_coef": 0.3,
        "router_z_loss_coef": 0.1});
    router.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    job["spec"]["router"] = router;
    job["spec"]["tasks"][0]["adapter"] =
        json!({"method": "lora", "r": 2, "target_modules": ["up_proj", "down_proj", "q_proj"]});
    job["spec"].as_object_mut().unwrap().remove("eval");
    job
}

#[rstest]
#[case::mixlora(json!({}))]
#[case::loramoe(json!({"method": "loramoe", "blc_weight": 0.3, "router_init_range": null,
    "router_aux_loss_coef": null, "router_z_loss_coef": null}))]
#[case::xlora(json!({"method": "xlora", "scaling_pass_value": 0.3, "layerwise_scalings": true, "router_init_range": null,
    "router_aux_loss_coef": null, "router_z_loss_coef": null}))]
fn losses_do_not_know_how_rows_are_cut(#[case] options: Value) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = mixed(folder.path(), &options);
    job["spec"]["router"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let whole = alone(&job, folder.path());
    assert_eq!(whole.end, "Finished", "{}", whole.message);
    for (micro_batch, checkpointing) in [(Some(3), false), (None, true), (Some(3), true)] {
        job["spec"]["train"]["micro_batch"] = json!(micro_batch);
        job["spec"]["train"]["activation_checkpointing"] = json!(checkpointing);
        let cut = alone(&job, folder.path());
        assert_eq!(cut.end, "Finished", "{}", cut.message);
        near(&cut.losses, &whole.losses, 1e-5);
    }
    job["spec"]["train"]["micro_batch"] = json!(null);
    job["spec"]["train"]["activation_checkpointing"] = json!(false);
    let two = gang(folder.path(), &job, 2, &Gang::default());
    near(&two[0].losses, &whole.losses, 1e-5);
    assert_eq!(two[0].digests, two[1].digests);
}

/// The balance counts: without it the losses are others, and so are the parameters.
#[test]
fn the_balance_is_part_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let with = alone(&mixed(folder.path(), &json!({})), folder.path());
    let without = mixed(folder.path(), &json!({"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}));
    let without = alone(&without, folder.path());
    // Two slots a token: two times the coefficient at perfect balance, never less by much.
    assert!(with.losses[0] - without.losses[0] > 0.5, "{} {}", with.losses[0], without.losses[0]);
    assert_ne!(with.digests, without.digests);
}

#[rstest]
#[case::two_ranks(2, 20)]
#[case::a_rank_runs_out_of_rows(3, 17)]
fn experts_shared_between_ranks_train_as_on_one(#[case] world: usize, #[case] rows: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = mixed(folder.path(), &json!({"expert_parallel": true, "jitter_noise": 0.05}));
    let all: String = (0..rows).map(|row| crate::fixture::lm_row(row, 0)).collect();
    std::fs::write(folder.path().join("train.jsonl"), all).unwrap();
    job["spec"]["train"]["micro_batch"] = json!(3);
    job["spec"]["tasks"][0]["adapter"]["lora_dropout"] = json!(0.1);
    let mut plain = job.clone();
    plain["spec"]["router"]["expert_parallel"] = json!(false);
    let one = alone(&plain, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    let many = gang(folder.path(), &job, world, &Gang::default());
    assert_eq!(many[0].end, "Finished", "{}", many[0].message);
    near(&many[0].losses, &one.losses, 1e-5);
    for rank in &many {
        assert_eq!(rank.digests, many[0].digests);
    }
}

#[test]
fn what_cannot_be_promised_of_shared_experts_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = mixed(folder.path(), &json!({"expert_parallel": true}));
    job["spec"]["train"]["determinism"] = json!("strict");
    let refused = alone(&job, folder.path());
    assert!(refused.message.contains("expert_parallel"), "{}", refused.message);
}

/// Two tasks and a router over them, resolved as it is when it is submitted.
fn over_tasks(folder: &Path, router: &Value) -> Value {
    let mut job = llama_job(folder, 20);
    let second = json!({"name": "b", "adapter": {"method": "lora", "r": 2, "target_modules": "all-linear"},
        "optimizer": {"lr": 1e-2}});
    job["spec"]["tasks"].as_array_mut().unwrap().push(second);
    job["spec"]["router"] = router.clone();
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["train"]["determinism"] = json!("strict");
    serde_json::to_value(parse(&job).resolve()).unwrap()
}

fn last(folder: &Path, task: &str, file: &str) -> Vec<u8> {
    let steps = folder.join("default/tiny").join(task).join("steps");
    let mut all: Vec<_> = std::fs::read_dir(&steps).unwrap().map(|step| step.unwrap().path()).collect();
    all.sort();
    std::fs::read(all.last().unwrap().join(file)).unwrap()
}

#[test]
fn a_router_learns_over_the_tasks_of_its_job_when_they_are_done() {
    let folder = tempfile::tempdir().unwrap();
    let router =
        json!({"method": "mixlora", "experts": ["a", "b"], "top_k": 1, "router_init_range": 0.3, "name": "mix"});
    let mut job = over_tasks(folder.path(), &router);
    assert_eq!(job["spec"]["tasks"][2]["name"], "mix");
    assert_eq!(parse(&job).resolve(), parse(&job), "resolving twice changes nothing");
    let (outcome, heard) = run_alone(&job);
    assert_eq!(format!("{:?}", outcome.unwrap()), "Finished");
    let store = folder.path().join("store");
    let names: Vec<_> = heard.steps.lock().unwrap().iter().map(|row| row.task.to_string()).collect();
    let begins = names.iter().position(|name| name == "mix").unwrap();
    assert!(names[..begins].len() == 6 && names[begins..].iter().all(|name| name == "mix"), "{names:?}");
    // What the tasks came to is what the mixture holds.
    let read = |bytes: Vec<u8>| {
        let path = folder.path().join("file.safetensors");
        std::fs::write(&path, bytes).unwrap();
        tch::Tensor::read_safetensors(&path).unwrap().into_iter().collect::<std::collections::BTreeMap<_, _>>()
    };
    let mixture = read(last(&store, "mix", "adapter_model.safetensors"));
    for task in ["a", "b"] {
        for (name, value) in read(last(&store, task, "adapter_model.safetensors")) {
            assert!(mixture[&format!("{task}.{name}")].equal(&value), "{task} {name}");
        }
    }
    let manifest: Value = serde_json::from_slice(&last(&store, "mix", "manifest.json")).unwrap();
    let experts = manifest["meta"]["experts"].as_array().unwrap();
    assert_eq!((experts[0]["from"].as_str(), experts[1]["name"].as_str()), (Some("task a"), Some("b")));
    assert_eq!(experts[0]["sha256"].as_str().unwrap().len(), 64);
    assert_ne!(experts[0]["sha256"], experts[1]["sha256"]);
    assert!(manifest["meta"]["metrics"]["router/effective_experts"].as_f64().unwrap() >= 1.0);
    assert_eq!(manifest["gate"]["publishable"], true, "{}", manifest["gate"]);
    // Two ranks, and a router over what was published.
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("two"));
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!(two[0].digests, heard.digests(), "{}", two[0].message);
    let step = |task: &str| store.join(format!("default/tiny/{task}/steps/00000003-g0001"));
    job["spec"]["tasks"] = json!([{"name": "over", "adapter": {"method": "xlora", "experts": [step("a"), step("b")]}}]);
    let over = alone(&job, folder.path());
    assert_eq!(over.end, "Finished", "{}", over.message);
    assert_eq!(over.losses.len(), 3);
    assert_ne!(over.digests[0], over.digests[2], "the classifier learns");
}

/// A task of rows that nobody knew learns its routing over experts that were published, at a rate of its own; experts and
/// what other tasks have learnt stay as they are.
#[test]
fn a_new_task_learns_its_routing_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = over_tasks(folder.path(), &json!({"method": "mhr", "experts": ["a", "b"], "name": "mix"}));
    job["spec"]["tasks"].as_array_mut().unwrap().pop();
    // Factors have an average when they are of one rank.
    let lora = json!({"method": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]});
    job["spec"]["tasks"][0]["adapter"] = lora.clone();
    job["spec"]["tasks"][1]["adapter"] = lora;
    assert_eq!(format!("{:?}", run_alone(&job).0.unwrap()), "Finished");
    let store = folder.path().join("store");
    let step = |task: &str| store.join(format!("default/tiny/{task}/steps/00000003-g0001"));
    let router =
        json!({"method": "mhr", "experts": [step("a"), step("b")], "task_names": ["x", "y", "new"], "n_splits": 2});
    job["spec"]["tasks"] = json!([{"name": "over", "adapter": router}]);
    let rows = (0..20).map(|row| {
        let mut fields: Value = serde_json::from_str(&crate::fixture::lm_row(row, 0)).unwrap();
        fields["task"] = json!("new");
        format!("{fields}\n")
    });
    std::fs::write(folder.path().join("train.jsonl"), rows.collect::<String>()).unwrap();
    job["spec"].as_object_mut().unwrap().remove("eval");
    job["spec"]["checkpoint"] =
        json!({"store": folder.path().join("over"), "every": 1, "max_lag": 1, "retention": {"last": 9}});
    let (outcome, heard) = run_alone(&job);
    assert_eq!(format!("{:?}", outcome.unwrap()), "Finished");
    let read = |path: &Path| -> std::collections::BTreeMap<String, tch::Tensor> {
        tch::Tensor::read_safetensors(path.join("adapter_model.safetensors")).unwrap().into_iter().collect()
    };
    let at = |number: u64| folder.path().join(format!("over/default/tiny/over/steps/{number:08}-g0001"));
    let (first, last) = (read(&at(1)), read(&at(3)));
    for (expert, task) in ["a", "b"].into_iter().enumerate() {
        for (name, value) in read(&step(task)) {
            assert!(last[&format!("e{expert}.{name}")].equal(&value), "{task} {name}");
        }
    }
    let logits: Vec<_> = last.keys().filter(|name| name.ends_with("module_logits")).collect();
    assert_eq!(logits.len(), 4, "queries and values of two blocks");
    for name in logits {
        let moved = |task: i64| (first[name].get(task) - last[name].get(task)).abs().max().double_value(&[]);
        assert_eq!((moved(0), moved(1)), (0.0, 0.0), "{name}");
        // A hundred times the task's rate, twice.
        let rate = heard.steps.lock().unwrap()[1].learning_rate;
        assert!(moved(2) > 50.0 * rate && moved(2) < 210.0 * rate, "{name}: {} at {rate}", moved(2));
    }
}

#[test]
fn an_interruption_of_a_router_over_tasks_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let router = json!({"method": "mixlora", "experts": ["a", "b"], "train": "all", "router_init_range": 0.3});
    let mut job = over_tasks(folder.path(), &router);
    let whole = alone(&job, folder.path());
    assert_eq!(whole.end, "Finished", "{}", whole.message);
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("cut"));
    let mut digests = Vec::new();
    // Before, within and after the router's first step.
    for (generation, steps) in [(1, 3), (2, 5), (3, 99)] {
        let stop = pleach_train::StopSignal::default();
        let heard = std::sync::Arc::new(crate::fixture::Heard::stopping_after(steps, &stop));
        let group = pleach_comm::local(tch::Device::Cpu);
        crate::fixture::run(parse(&job), group.as_ref(), generation, &heard, stop).unwrap();
        digests.extend(heard.digests());
    }
    assert_eq!(digests, whole.digests);
}
