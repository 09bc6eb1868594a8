//! Adapters with few bits a weight, on models: what is stored is what was trained with.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, find};
use pleach_nn::families;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::support::{Batch, Model, all, distance, fresh, moved};
use crate::zoo::backbone;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn wrapped(method: &str, options: Value, adapter: &str, inner: Value) -> Arc<dyn AdapterConfig> {
    let inner = find(MethodKind::Adapter, adapter).unwrap().parse(&map(inner), "adapter").unwrap();
    let around = find(MethodKind::Compress, method).unwrap().around(&map(options), "compress").unwrap().unwrap();
    around.wrap(inner).unwrap().into()
}

fn model(name: &str) -> Model {
    backbone(*families().iter().find(|family| family.name() == name).unwrap())
}

/// Wrapped adapters on models that they work on.
fn pairs() -> Vec<(Model, Arc<dyn AdapterConfig>)> {
    let lora = || json!({"r": 3, "target_modules": "all-linear"});
    let former = || json!({"dim": 3, "scale": 1.0, "bias": false, "dropout": 0.0});
    vec![
        (model("llama"), wrapped("adapter_qat", json!({"bit": 1}), "lora", lora())),
        (model("bert"), wrapped("adapter_qat", json!({"bit": 2, "per": "row"}), "adaptformer", former())),
        (model("vit"), wrapped("adapter_qat", json!({"bit": 4, "codebook": "mse_gauss"}), "adaptformer", former())),
        (model("gpt2"), wrapped("adapter_ptq", json!({"bit": 1}), "lora", lora())),
        (model("vit"), wrapped("adapter_ptq", json!({"bit": 8}), "adaptformer", json!({"dim": 3, "scale": 1.0}))),
    ]
}

fn batch(model: &Model) -> Batch {
    model.batch(&[6, 4, 5], Some(7))
}

/// The adapter as a reader of its file has it.
fn read(model: &Model, adapter: &Adapter) -> Adapter {
    let config = adapter.config();
    let said = config.adapter_config(&*model.config, adapter.plan(), &Export { base: "../model" });
    let reader: Arc<dyn AdapterConfig> =
        find(MethodKind::Compress, config.card().name).unwrap().import(&said).unwrap().into();
    let plan = Arc::new(reader.plan(&*model.config).unwrap());
    let values: BTreeMap<String, Tensor> = adapter.exported().unwrap().into_iter().collect();
    Adapter::build(reader, plan, &*model.backbone, Key::seed(9), Some(&values)).unwrap()
}

#[test]
fn what_is_read_runs_as_it_was_evaluated() {
    for (model, config) in pairs() {
        let adapter = moved(&model, &config, 5);
        let batch = batch(&model);
        let run = |adapter: &Adapter| model.run(&batch, &all(&batch, adapter));
        let again = read(&model, &adapter);
        assert_eq!(distance(&run(&adapter), &run(&again)), 0.0, "{}", config.card().name);
        assert!(distance(&run(&adapter), &model.run(&batch, &[])) > 1e-4, "it does something");
        // And once more, from what the reader writes.
        let twice = again.exported().unwrap();
        for ((name, a), (other, b)) in adapter.exported().unwrap().iter().zip(&twice) {
            assert!(name == other && a.equal(b), "{name}");
        }
    }
}

#[test]
fn a_file_has_as_many_bits_as_were_asked_for() {
    for (model, config) in pairs() {
        let adapter = moved(&model, &config, 5);
        let exported = adapter.exported().unwrap();
        let coded: Vec<_> = exported.iter().filter(|(name, _)| name.ends_with(".coded")).collect();
        let said = config.adapter_config(&*model.config, adapter.plan(), &Export { base: "b" });
        let (bit, shapes) = (said["bit"].as_u64().unwrap(), said["coded"].as_object().unwrap());
        assert!(coded.len() >= 4 && coded.len() == shapes.len());
        for (name, bytes) in coded {
            assert_eq!(bytes.kind(), Kind::Uint8);
            let [rows, columns] =
                [0usize, 1].map(|axis| shapes[name.trim_end_matches(".coded")][axis].as_u64().unwrap());
            let spreads = if said["per"] == "row" { rows } else { 1 };
            assert_eq!(bytes.numel() as u64, (rows * columns * bit).div_ceil(8) + 8 * spreads, "{name}");
        }
    }
}

#[test]
fn every_matrix_has_a_gradient_and_no_other_tensor_moves() {
    for (model, config) in pairs() {
        let adapter = moved(&model, &config, 3);
        let batch = batch(&model);
        batch.real(&model.run(&batch, &all(&batch, &adapter))).square().sum(Kind::Float).backward();
        for (name, leaf) in adapter.params().iter() {
            assert!(leaf.grad().defined() && leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        }
        assert_eq!(adapter.params().numel() as u64, config.plan(&*model.config).unwrap().params());
    }
}

#[test]
fn merged_it_gives_the_same_outputs() {
    let (model, config) = pairs().remove(0);
    let adapter = moved(&model, &config, 5);
    let mut merged = pleach_nn::Replaced::default();
    for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
        merged.insert(site, weights);
    }
    let batch = batch(&model);
    let groups = [pleach_nn::Group { rows: 0..3, hooks: &merged }];
    let (a, b) = (model.run(&batch, &groups), model.run(&batch, &all(&batch, &adapter)));
    assert!(distance(&a, &b) < 3e-5 * b.abs().max().double_value(&[]).max(1.0));
}

#[test]
fn codes_are_in_training_or_only_behind_it() {
    for (model, config) in pairs() {
        let (adapter, batch) = (moved(&model, &config, 5), batch(&model));
        let run = |train| model.run_at(&batch, &all(&batch, &adapter), train, 1);
        let apart = distance(&run(true), &run(false));
        match config.card().name {
            "adapter_qat" => assert_eq!(apart, 0.0),
            _ => assert!(apart > 1e-6, "float in training, coded in evaluation: {apart}"),
        }
    }
}

/// A coded matrix may not begin at zero; one that is coded afterwards may.
#[test]
fn no_coded_matrix_begins_at_zero() {
    for (model, config) in pairs() {
        let adapter = fresh(&model, &config, Key::seed(3));
        let zeros = adapter.params().iter().filter(|(_, leaf)| leaf.abs().max().double_value(&[]) == 0.0).count();
        let after = config.card().name == "adapter_ptq";
        assert_eq!(zeros > 0, after, "{}", config.card().name);
        assert_eq!(config.card().identity_at_init, after);
        let batch = batch(&model);
        let off = distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[]));
        assert_eq!(off < 1e-6, after, "{}: {off}", config.card().name);
    }
}
