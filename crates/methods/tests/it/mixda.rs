//! MixDA: what the gate mixes, what is frozen, and where domain adapters come from.

use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, Plan, find};
use pleach_nn::{Precision, families};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, fresh, model, moved, parse};
use crate::zoo::backbone;

/// The mixture with these options around a bottleneck adapter.
fn mixture(options: &Value) -> pleach_base::Result<Arc<dyn AdapterConfig>> {
    let around = find(MethodKind::Strategy, "mixda")?.around(options.as_object().unwrap(), "spec.strategy")?.unwrap();
    let task = find(MethodKind::Adapter, "bottleneck")?.parse(&serde_json::Map::new(), "adapter")?;
    Ok(around.wrap(task)?.into())
}

fn two() -> Value {
    json!({"load_adapters": [{"id": "a", "layers": [0, 1], "adapter_down_scale": 4},
                             {"id": "b", "layers": [1], "adapter_down_scale": 8}], "gate": {"hidden": 5}})
}

fn with_gate(gate: &Value) -> Value {
    let mut options = two();
    for (name, value) in gate.as_object().unwrap() {
        options["gate"][name] = value.clone();
    }
    options
}

fn bert() -> Model {
    backbone(*families().iter().find(|family| family.name() == "bert").unwrap())
}

/// Everything off its beginning, domain adapters included.
fn stirred(model: &Model, config: &Arc<dyn AdapterConfig>) -> Adapter {
    let adapter = moved(model, config, 3);
    let mut rng = Key::seed(8).rng();
    for (name, tensor) in adapter.kept() {
        let noise: Vec<f32> = (0..tensor.numel()).map(|_| 0.05 * rng.normal()).collect();
        assert!(name.contains("domain_"), "{name}: only domain adapters are kept");
        tensor.shallow_clone().copy_(&(tensor + Tensor::from_slice(&noise).reshape(tensor.size())));
    }
    adapter
}

/// Sets every weight of all gates: `closed` of domain adapters to 0 and of the frozen map to 1.
fn close(adapter: &Adapter) {
    let _no_grad = tch::no_grad_guard();
    for (name, leaf) in adapter.params().iter().filter(|(name, _)| name.starts_with("gate.")) {
        let mut leaf = leaf.shallow_clone();
        let _ = leaf.zero_();
        if name.ends_with(".1.bias") {
            let n = leaf.size()[0];
            let _ = leaf.fill_(-1e4);
            let _ = leaf.narrow(0, n - 1, 1).fill_(1e4);
        }
    }
}

fn out(model: &Model, batch: &Batch, adapter: &Adapter) -> Tensor {
    batch.real(&model.run(batch, &all(batch, adapter)))
}

#[test]
fn with_the_weight_of_the_frozen_map_alone_the_model_is_the_base_to_the_bit() {
    let model = bert();
    let batch = model.batch(&[6, 4, 5], Some(7));
    for input in ["attention_output", "ffn_hidden"] {
        // The task's adapter stays at its beginning, where it adds nothing only if its second map is zero.
        let mut options = with_gate(&json!({"input": input}));
        options["load_adapters"][0]["layers"] = json!([0]);
        let around = find(MethodKind::Strategy, "mixda").unwrap();
        let around = around.around(options.as_object().unwrap(), "s").unwrap().unwrap();
        let task = json!({"preset": "seq_bn", "init_weights": "mam_adapter"});
        let task = find(MethodKind::Adapter, "bottleneck").unwrap().parse(task.as_object().unwrap(), "a").unwrap();
        let config: Arc<dyn AdapterConfig> = around.wrap(task).unwrap().into();
        let adapter = fresh(&model, &config, Key::seed(1));
        for tensor in adapter.kept().values() {
            let _ = tensor.shallow_clone().fill_(0.3);
        }
        let base = batch.real(&model.run(&batch, &[]));
        assert!(distance(&out(&model, &batch, &adapter), &base) > 1e-3, "{input}: the domain adapters do something");
        close(&adapter);
        assert_eq!(distance(&out(&model, &batch, &adapter), &base), 0.0, "{input}");
    }
}

#[test]
fn gates_and_the_tasks_adapter_are_trained_and_domain_adapters_are_not() {
    let model = bert();
    let config = mixture(&two()).unwrap();
    let adapter = stirred(&model, &config);
    let batch = model.batch(&[6, 4, 5], Some(7));
    out(&model, &batch, &adapter).square().sum(Kind::Float).backward();
    let mut kinds = std::collections::BTreeSet::new();
    for (name, leaf) in adapter.params().iter() {
        assert!(!name.contains("domain_"), "{name}");
        assert!(leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        kinds.insert(name.split('.').next().unwrap().to_owned());
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["base_model", "gate"]);
    for (name, tensor) in adapter.kept() {
        assert!(!tensor.requires_grad() && !tensor.grad().defined(), "{name}");
    }
    let last = |block: usize| {
        let name = format!("gate.base_model.model.bert.encoder.layer.{block}.output.dense.1.weight");
        adapter.params().get(&name).map(Tensor::size)
    };
    assert_eq!((last(0), last(1)), (Some(vec![2, 5]), Some(vec![3, 5])), "one weight an adapter there and one more");
}

/// Rows lie alone or in company, padded or packed; a row alone has the shape that it has among others.
#[test]
fn no_pool_sees_padding_or_other_rows() {
    let model = bert();
    for pool in ["none", "first", "last_real", "mean"] {
        for activation in ["sigmoid", "softmax"] {
            for input in ["attention_output", "ffn_hidden"] {
                let gate = json!({"pool": pool, "activation": activation, "input": input});
                let adapter = stirred(&model, &mixture(&with_gate(&gate)).unwrap());
                let (padded, packed) = (model.batch(&[6, 4, 5], Some(9)), model.batch(&[6, 4, 5], None));
                let expected = out(&model, &padded, &adapter);
                assert_near(&out(&model, &packed, &adapter), &expected, 1e-5);
                let alone = padded.rows(0..1);
                let alone = out(&model, &alone, &adapter);
                assert_near(&alone, &expected.narrow(0, 0, alone.size()[0]), 1e-5);
            }
        }
    }
}

#[test]
fn a_gate_without_anything_learnt_weighs_all_alike() {
    let model = bert();
    for (activation, weight) in [("sigmoid", 1.0 / 3.0), ("softmax", 1.0 / 3.0)] {
        let adapter = fresh(&model, &mixture(&with_gate(&json!({"activation": activation}))).unwrap(), Key::seed(1));
        let name = "gate.base_model.model.bert.encoder.layer.1.output.dense.1.bias";
        let bias = adapter.params().get(name).unwrap();
        let weights = if activation == "sigmoid" { bias.sigmoid() } else { bias.softmax(-1, None::<Kind>) };
        assert!((weights - weight).abs().max().double_value(&[]) < 1e-6, "{activation}");
    }
}

/// A domain adapter that another job left is read from its folder; one of another width is not taken.
#[test]
fn domain_adapters_come_from_their_folders() {
    let model = model("bert-lora", Precision::Fp32);
    let options = json!({"layers": [0, 1], "adapter_down_scale": 4});
    let domain = moved(&model, &parse("domain", &options), 5);
    let folder = tempfile::tempdir().unwrap();
    let said = domain.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), serde_json::to_vec(&said).unwrap()).unwrap();
    let tensors = domain.exported().unwrap();
    Tensor::write_safetensors(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
    let load = |scale: u32| {
        let loaded = json!({"id": "a", "init_from": folder.path(), "layers": [0, 1], "adapter_down_scale": scale});
        let config = mixture(&json!({"load_adapters": [loaded], "gate": {"hidden": 3}})).unwrap();
        let plan = Arc::new(config.plan(&*model.config).unwrap());
        Adapter::build(config, plan, &*model.backbone, Key::seed(2), None)
    };
    let adapter = load(4).unwrap();
    for (name, tensor) in &tensors {
        assert!(adapter.kept()[&format!("a.{name}")].equal(tensor), "{name}");
    }
    let error = load(8).map(drop).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_FORMAT, "{error}");
    // What it leaves is whole: nobody needs the folder to read it.
    let written = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    assert!(!serde_json::to_string(&written).unwrap().contains("init_from"));
}

/// Without the gate the only domain adapter stands in for the map, as in its own training.
#[test]
fn without_a_gate_a_domain_adapter_stands_in_for_the_map() {
    let model = bert();
    let loaded = json!([{"id": "a", "layers": [1], "adapter_down_scale": 4}]);
    let config = mixture(&json!({"load_adapters": loaded, "disable_moe": true})).unwrap();
    let adapter = stirred(&model, &config);
    assert!(adapter.params().iter().all(|(name, _)| !name.starts_with("gate.")));
    let task: Plan = adapter.plan().children.last().unwrap().clone();
    assert!(task.params() == adapter.plan().params());
    let two = mixture(&json!({"load_adapters": [{"id": "a"}, {"id": "b"}], "disable_moe": true}));
    assert_eq!(two.map(drop).unwrap_err().code(), code::METHOD_CONFIG);
}

#[test]
fn a_task_adapter_at_the_same_map_is_refused() {
    let model = bert();
    let around = find(MethodKind::Strategy, "mixda").unwrap();
    let around = around.around(two().as_object().unwrap(), "s").unwrap().unwrap();
    let lora = json!({"target_modules": "all-linear"});
    let lora = find(MethodKind::Adapter, "lora").unwrap().parse(lora.as_object().unwrap(), "a").unwrap();
    let error = around.wrap(lora).unwrap().plan(&*model.config).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("load_adapters: the adapter `lora` acts on"), "{error}");
}
