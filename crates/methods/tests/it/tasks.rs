//! Adapters that tell rows apart by their tasks: a mixed batch is its rows one by one, in both layouts.

use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, MethodKind, Owner, find};
use pleach_nn::{Precision, families};
use rstest::rstest;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, fresh, model, moved, parse};
use crate::zoo::backbone;

const TASKS: [u32; 5] = [2, 0, 0, 2, 1];

fn vl(options: &Value, inner: (&str, Value)) -> Arc<dyn AdapterConfig> {
    let mut all = json!({"tasks": [{"name": "a", "prompt": "a: "}, {"name": "b", "prompt": "b: "}, {"name": "c", "prompt": "c: "}],
                         "reduction_factor": 4});
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let strategy = find(MethodKind::Strategy, "vl_multitask").unwrap();
    let around = strategy.around(all.as_object().unwrap(), "spec.strategy").unwrap().unwrap();
    let adapter = find(MethodKind::Adapter, inner.0).unwrap();
    let adapter = adapter.parse(inner.1.as_object().unwrap(), "adapter").unwrap();
    around.wrap(adapter).unwrap().into()
}

fn poly(options: &Value) -> Arc<dyn AdapterConfig> {
    let mut all = json!({"r": 2, "n_tasks": 3, "n_skills": 3, "n_splits": 2});
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    parse("poly", &all)
}

fn named(batch: Batch, tasks: &[u32]) -> Batch {
    let second = batch.second.map(|second| second.of_tasks(tasks.to_vec()));
    Batch { layout: batch.layout.of_tasks(tasks.to_vec()), second, ..batch }
}

fn configs() -> Vec<(&'static str, Arc<dyn AdapterConfig>)> {
    vec![
        ("poly", poly(&json!({}))),
        ("poly, noisy", poly(&json!({"module_logits_relaxed_bernoulli": true, "module_logits_dropout": 0.3}))),
        ("poly, layerwise", poly(&json!({"router_granularity": "layerwise", "target_modules": "all-linear"}))),
        ("multiple", vl(&json!({"sharing": "multiple"}), ("bottleneck", json!({})))),
        (
            "share_up",
            vl(&json!({"sharing": "share_up", "add_layer_norm_before_adapter": true}), ("bottleneck", json!({}))),
        ),
        ("share_down", vl(&json!({"sharing": "share_down"}), ("lora", json!({"r": 4})))),
        ("compacter", vl(&json!({"sharing": "multiple"}), ("compacter", json!({})))),
        ("prompt", vl(&json!({"sharing": "multiple"}), ("prompt", json!({"num_virtual_tokens": 3})))),
        ("hyper", vl(&json!({"sharing": "hyper", "task_embedding_dim": 6, "hidden": 5}), ("bottleneck", json!({})))),
    ]
}

fn model_of(family: &str) -> Model {
    backbone(*families().iter().find(|known| known.name() == family).unwrap())
}

#[rstest]
fn a_mixed_batch_is_its_rows_one_by_one(
    #[values("llama", "bart")] family: &str,
    #[values(Some(11), None)] width: Option<usize>,
    #[values(false, true)] train: bool,
) {
    let model = model_of(family);
    for (name, config) in configs() {
        if config.plan(&*model.config).is_err() {
            continue;
        }
        let adapter = moved(&model, &config, 3);
        let batch = named(model.batch(&[6, 9, 4, 7, 5], width), &TASKS).room(config.as_ref());
        let groups = all(&batch, &adapter);
        let together = model.run_at(&batch, &groups, train, 4);
        let seen = |batch: &Batch, output: &Tensor| batch.real(output);
        let parts = (0..TASKS.len()).map(|row| {
            let part = batch.rows(row..row + 1);
            seen(&part, &model.run_at(&part, &all(&part, &adapter), train, 4))
        });
        let apart = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
        let off = distance(&seen(&batch, &together), &apart);
        assert!(off < 2e-5, "{name} on {family}: off by {off:e}");
        let other = named(model.batch(&[6, 9, 4, 7, 5], width), &[0; 5]).room(config.as_ref());
        let same = model.run_at(&other, &all(&other, &adapter), train, 4);
        assert!(distance(&same, &together) > 1e-4, "{name} on {family}: tasks make no difference");
    }
}

/// What belongs to a task that no row names gets no gradient, and everything else does.
#[test]
fn absent_tasks_get_no_gradient() {
    let model = model_of("bart");
    for (name, config) in configs() {
        let Ok(plan) = config.plan(&*model.config) else { continue };
        let adapter = moved(&model, &config, 3);
        let batch = named(model.batch(&[6, 9, 4], None), &[2, 0, 2]).room(config.as_ref());
        let output = model.run(&batch, &all(&batch, &adapter));
        batch.real(&output).sin().sum(Kind::Float).backward();
        let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
        let mut owned = 0;
        for tensor in plan.trained() {
            let grad = adapter.params().get(&tensor.name).unwrap().grad();
            let of = |grad: &Tensor| if grad.defined() { largest(grad) } else { 0.0 };
            match config.owner(tensor) {
                Owner::Task(1) => assert_eq!(of(&grad), 0.0, "{name}: {}", tensor.name),
                Owner::EachRow => {
                    assert_eq!(largest(&grad.get(1)), 0.0, "{name}: {}", tensor.name);
                    assert!(largest(&grad.get(2)) > 0.0, "{name}: {}", tensor.name);
                }
                Owner::Task(_) | Owner::All => {}
            }
            owned += usize::from(config.owner(tensor) != Owner::All);
        }
        assert!(owned > 0, "{name}: nothing belongs to a task");
    }
}

/// One set of tensors behind every task: what is learnt from one is seen by all.
#[test]
fn a_single_adapter_is_the_same_for_all_tasks() {
    let model = model_of("bart");
    let config = vl(&json!({}), ("bottleneck", json!({})));
    let plan = config.plan(&*model.config).unwrap();
    assert!(plan.trained().all(|tensor| config.owner(tensor) == Owner::All));
    let adapter = moved(&model, &config, 3);
    let [a, b] = [[0, 0], [1, 1]].map(|tasks| {
        let batch = named(model.batch(&[6, 9], None), &tasks);
        model.run(&batch, &all(&batch, &adapter))
    });
    assert!(a.equal(&b));
}

/// With the second map at zero and the norms as they were, the model's output is exactly that of the bare model.
#[test]
fn zero_second_maps_leave_the_model_as_it_is() {
    let model = model_of("bart");
    for sharing in ["single", "multiple", "share_down"] {
        let config = vl(&json!({"sharing": sharing}), ("bottleneck", json!({})));
        let adapter = fresh(&model, &config, Key::seed(1));
        let plan = config.plan(&*model.config).unwrap();
        for tensor in plan.trained().filter(|tensor| tensor.part.starts_with("adapter_up")) {
            let _ = tch::no_grad(|| adapter.params().get(&tensor.name).unwrap().shallow_clone().zero_());
        }
        let batch = named(model.batch(&[6, 9], None), &[0, 2]);
        assert!(model.run(&batch, &all(&batch, &adapter)).equal(&model.run(&batch, &[])), "{sharing}");
    }
}

/// The inventory of one adapter is what the next begins with; what is saved of one task is a LoRA.
#[test]
fn skills_go_on_to_new_tasks_and_a_task_leaves_as_a_lora() {
    let model = model("llama-lora", Precision::Fp32);
    let first = poly(&json!({"task_names": ["x", "y", "z"], "n_tasks": 3, "target_modules": ["q_proj", "down_proj"]}));
    let adapter = moved(&model, &first, 5);
    let folder = tempfile::tempdir().unwrap();
    save(&model, &adapter, folder.path());
    let more = |mode: &str| {
        json!({"r": 2, "n_skills": 3, "n_splits": 2, "mode": mode, "inventory": folder.path(),
               "target_modules": ["q_proj", "down_proj"]})
    };
    let mut options = more("z");
    options["task_names"] = json!(["new", "y"]);
    let z = fresh(&model, &parse("poly", &options), Key::seed(9));
    assert!(z.params().iter().all(|(name, _)| name.ends_with("module_logits")));
    let batch = |tasks: &[u32]| named(Batch::of(&[6, 9], &[1, 2], None), tasks);
    let run = |adapter: &Adapter, batch: &Batch| model.run(batch, &all(batch, adapter));
    assert_near(&run(&z, &batch(&[1, 1])), &run(&adapter, &batch(&[1, 1])), 1e-6);
    assert!(distance(&run(&z, &batch(&[0, 0])), &run(&adapter, &batch(&[0, 0]))) > 1e-4);

    let mu = moved(&model, &parse("poly", &more("mu")), 6);
    let saved = tempfile::tempdir().unwrap();
    save(&model, &mu, saved.path());
    let again = crate::support::imported(&model, saved.path());
    assert_eq!(again.config().card().name, "lora");
    assert_near(&run(&again, &batch(&[])), &run(&mu, &batch(&[])), 1e-5);

    let mut options = json!({"task_names": ["x", "y", "z"], "n_tasks": 3, "target_modules": ["q_proj", "down_proj"]});
    options["export_task"] = json!("y");
    options["r"] = json!(2);
    let one = moved(&model, &poly(&options), 5);
    save(&model, &one, saved.path());
    let lora = crate::support::imported(&model, saved.path());
    assert_near(&run(&lora, &batch(&[])), &run(&adapter, &batch(&[1, 1])), 1e-5);
}

/// A model has no tasks of rows: of several, one must be chosen.
#[test]
fn a_router_of_several_tasks_is_not_merged() {
    let model = model("llama-lora", Precision::Fp32);
    let merged = |options: Value| {
        moved(&model, &poly(&options), 5).merge(model.config.sites(), &*model.backbone).map(|sites| sites.len())
    };
    let error = merged(json!({"task_names": ["x", "y", "z"]})).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("poly cannot be merged into `model.layers.0.self_attn.q_proj`"), "{error}");
    assert!(error.hint_text().unwrap().contains("`export_task`"), "{error:?}");
    assert_eq!(merged(json!({"task_names": ["x", "y", "z"], "export_task": "y"})).unwrap(), 4);
    assert_eq!(merged(json!({"n_tasks": 1, "task_names": []})).unwrap(), 4);
    let vl = moved(&model, &vl(&json!({"sharing": "multiple"}), ("bottleneck", json!({}))), 5);
    let error = vl.merge(model.config.sites(), &*model.backbone).map(drop).unwrap_err();
    assert_eq!(error.hint_text(), Some("use the adapter unmerged"));
}

fn save(model: &Model, adapter: &Adapter, folder: &std::path::Path) {
    let export = pleach_methods::Export { base: "base" };
    let config = adapter.adapter_config(&*model.config, &export).unwrap();
    std::fs::write(folder.join("adapter_config.json"), Value::Object(config).to_string()).unwrap();
    let tensors: Vec<_> = adapter.exported().unwrap().into_iter().map(|(name, t)| (name, t.contiguous())).collect();
    Tensor::write_safetensors(&tensors, folder.join("adapter_model.safetensors")).unwrap();
}
