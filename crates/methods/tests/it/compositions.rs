//! Compositions: sums, means, chains and attention over several adapters are what their formulas say.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, Export, MethodKind, PlannedTensor, StepInfo, find};
use pleach_nn::{Precision, Replaced};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, model, moved, parse};

fn batch() -> Batch {
    Batch::of(&[6, 4, 5], &[11, 12, 13], Some(7))
}

fn out(model: &Model, adapter: &Adapter) -> Tensor {
    let batch = batch();
    batch.real(&model.run(&batch, &all(&batch, adapter)))
}

fn lora(name: &str, module: &str) -> Value {
    json!({"name": name, "method": "lora", "r": 2, "target_modules": [module]})
}

/// The adapter of one child alone, with the values that it has in a composition.
fn alone(model: &Model, whole: &Adapter, child: &Value) -> Adapter {
    let mut options = child.clone();
    let map = options.as_object_mut().unwrap();
    let name = map.remove("name").unwrap();
    let method = map.remove("method").unwrap();
    map.remove("frozen");
    let config = parse(method.as_str().unwrap(), &options);
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    let written: BTreeMap<_, _> = whole.exported().unwrap().into_iter().collect();
    let value = |tensor: &PlannedTensor| {
        // Modules that are trained whole belong to all, under one of the names that methods have for them.
        let of_all = || whole.plan().part(tensor.site, tensor.part).map(|shared| &written[&shared.name]).unwrap();
        let own = written.get(&format!("{}.{}", name.as_str().unwrap(), tensor.name));
        (tensor.name.clone(), own.unwrap_or_else(of_all).shallow_clone())
    };
    let values: BTreeMap<_, _> = plan.tensors.iter().filter(|tensor| tensor.in_file()).map(value).collect();
    Adapter::build(config, plan, &*model.backbone, Key::seed(0), Some(&values)).unwrap()
}

fn compose(model: &Model, method: &str, children: &[Value], more: Value) -> Adapter {
    let mut options = more;
    options["adapters"] = Value::from(children.to_vec());
    moved(model, &parse(method, &options), 3)
}

/// At the last map of the last block what is added goes straight to the head's input.
#[test]
fn parallel_adapters_add_what_each_changes() {
    let model = model("llama-lora", Precision::Fp32);
    let children = [lora("a", "o_proj"), lora("b", "o_proj"), lora("c", "down_proj")];
    let both = compose(&model, "parallel", &children, json!({}));
    let stack = compose(&model, "stack", &children, json!({}));
    assert!(distance(&out(&model, &both), &out(&model, &alone(&model, &both, &children[0]))) > 1e-3);
    // Additive methods in a chain add up as well.
    assert_near(&out(&model, &both), &out(&model, &stack), 1e-5);
    let mut merged = Replaced::default();
    for (site, weights) in both.merge(model.config.sites(), &*model.backbone).unwrap() {
        merged.insert(site, weights);
    }
    let batch = batch();
    let groups = [pleach_nn::Group { rows: 0..3, hooks: &merged }];
    assert_near(&batch.real(&model.run(&batch, &groups)), &out(&model, &both), 1e-5);
}

#[test]
fn an_average_of_one_adapter_with_itself_is_that_adapter() {
    let model = model("bert-lora", Precision::Fp32);
    for child in [json!({"method": "lora", "r": 2}), json!({"method": "bottleneck", "reduction_factor": 4})] {
        let named = |name: &str| {
            let mut child = child.clone();
            child["name"] = json!(name);
            child
        };
        let children = [named("a"), named("b")];
        let adapter = compose(&model, "average", &children, json!({"weights": [3, 1]}));
        let values = adapter.params();
        for (name, leaf) in values.iter().filter(|(name, _)| name.starts_with("b.")) {
            leaf.detach().copy_(&values.get(&name.replacen("b.", "a.", 1)).unwrap().detach());
        }
        assert_near(&out(&model, &adapter), &out(&model, &alone(&model, &adapter, &children[0])), 1e-5);
    }
}

#[test]
fn a_stack_with_an_adapter_that_does_nothing_is_the_other() {
    let model = model("bert-lora", Precision::Fp32);
    let child =
        |name: &str| json!({"name": name, "method": "bottleneck", "preset": "double_seq_bn", "reduction_factor": 4});
    let children = [child("a"), child("b")];
    let adapter = compose(&model, "stack", &children, json!({}));
    let whole = out(&model, &adapter);
    for (quiet, other) in [("a.", 1), ("b.", 0)] {
        let adapter = compose(&model, "stack", &children, json!({}));
        for (_, leaf) in
            adapter.params().iter().filter(|(name, _)| name.starts_with(quiet) && name.contains("adapter_up"))
        {
            let _ = leaf.detach().zero_();
        }
        let found = out(&model, &adapter);
        assert_near(&found, &out(&model, &alone(&model, &adapter, &children[other])), 1e-5);
        assert!(distance(&found, &whole) > 1e-3, "the quiet one had something to say");
    }
}

#[test]
fn a_stack_is_merged_where_that_is_exact_only() {
    let model = model("llama-lora", Precision::Fp32);
    let child =
        |name: &str| json!({"name": name, "method": "lora", "r": 2, "use_dora": true, "target_modules": ["q_proj"]});
    let merge = |method: &str| {
        let adapter = compose(&model, method, &[child("a"), child("b")], json!({}));
        adapter.merge(model.config.sites(), &*model.backbone).map(|weights| (adapter, weights))
    };
    assert!(merge("stack").is_err(), "the second would be normed by the first one's weight");
    let (adapter, weights) = merge("average").unwrap();
    let mut merged = Replaced::default();
    weights.into_iter().for_each(|(site, weights)| merged.insert(site, weights));
    let batch = batch();
    let groups = [pleach_nn::Group { rows: 0..3, hooks: &merged }];
    assert_near(&batch.real(&model.run(&batch, &groups)), &out(&model, &adapter), 1e-5);
}

#[test]
fn gates_open_and_close_what_an_adapter_changes() {
    let model = model("bert-lora", Precision::Fp32);
    let children = [
        lora("a", "query"),
        json!({"name": "b", "method": "prefix", "num_virtual_tokens": 3}),
        json!({"name": "c", "method": "bottleneck", "reduction_factor": 4, "preset": "double_seq_bn"}),
    ];
    let adapter = compose(&model, "parallel", &children, json!({"use_gating": true}));
    let with = |bias: f64, child: &str| {
        for (name, leaf) in adapter.params().iter().filter(|(name, _)| name.contains(".gate.")) {
            let value = if name.starts_with(child) { bias } else { -60.0 };
            let _ = leaf.detach().fill_(if name.ends_with("bias") { value } else { 0.0 });
        }
        out(&model, &adapter)
    };
    let closed = with(-60.0, "a.");
    let base: BTreeMap<_, _> = adapter.params().iter().filter(|(name, _)| name.contains("classifier")).collect();
    assert_eq!(base.len(), 2, "the head is trained once");
    for child in &children {
        let name = format!("{}.", child["name"].as_str().unwrap());
        assert_near(&with(60.0, &name), &out(&model, &alone(&model, &adapter, child)), 1e-5);
        assert!(distance(&with(60.0, &name), &closed) > 1e-3, "{name}");
    }
}

#[test]
fn fused_adapters_rest_and_their_attention_learns() {
    let model = model("bert-lora", Precision::Fp32);
    let children = [
        json!({"name": "a", "method": "bottleneck", "reduction_factor": 4}),
        json!({"name": "b", "method": "bottleneck", "reduction_factor": 8, "frozen": false}),
    ];
    let adapter = compose(&model, "fuse", &children, json!({}));
    let trained: Vec<_> = adapter.params().iter().map(|(name, _)| name.to_owned()).collect();
    assert!(trained.iter().all(|name| !name.starts_with("a.")) && trained.iter().any(|name| name.starts_with("b.")));
    assert!(adapter.kept().keys().any(|name| name.starts_with("a.")), "it is in the file");
    let config = adapter.config();
    let said = config.adapter_config(&*model.config, adapter.plan(), &Export { base: "x" });
    let again = find(MethodKind::Adapter, "fuse").unwrap().import(&said).unwrap();
    assert_eq!(again.plan(&*model.config).unwrap(), *adapter.plan());

    // Identities are free, everything else costs.
    let cost = adapter.regulariser().unwrap();
    assert!(cost.double_value(&[]) > 1e-3);
    for (name, leaf) in adapter.params().iter().filter(|(name, _)| name.ends_with("value.weight")) {
        assert!(name.contains("adapter_fusion_layer"));
        leaf.detach().copy_(&Tensor::eye(leaf.size()[0], (Kind::Float, leaf.device())));
    }
    assert!(adapter.regulariser().unwrap().double_value(&[]) < 1e-12);
    adapter.after_step(StepInfo::new(1, 2, &[2])).unwrap();
}

#[test]
fn adapters_begin_with_the_values_of_their_folders() {
    let model = model("llama-lora", Precision::Fp32);
    let folder = crate::support::case("llama-lora").join("adapter");
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let saved: Value = serde_json::from_str(&text).unwrap();
    let pick = |field: &str| saved[field].clone();
    let child = json!({"name": "a", "method": "lora", "r": pick("r"), "lora_alpha": pick("lora_alpha"),
        "target_modules": pick("target_modules"), "init_from": folder, "use_rslora": pick("use_rslora")});
    let options = json!({"adapters": [child, {"name": "b", "method": "lora", "r": 2}]});
    let config = parse("stack", &options);
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    let adapter = Adapter::build(config, plan, &*model.backbone, Key::seed(1), None).unwrap();
    let imported = pleach_methods::import(&folder).unwrap();
    for (name, value) in imported.values().unwrap() {
        assert_eq!(distance(adapter.params().get(&format!("a.{name}")).unwrap(), &value), 0.0, "{name}");
    }
    let mut other = options.clone();
    other["adapters"][0]["r"] = json!(3);
    let config = parse("stack", &other);
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    let error = Adapter::build(config, plan, &*model.backbone, Key::seed(1), None).map(drop).unwrap_err();
    assert!(error.message().contains("adapters[0].init_from: tensor `base_model"), "{error:?}");
}
