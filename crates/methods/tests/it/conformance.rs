//! What every registered method owes: these tests loop over the registry, on every recorded backbone.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, Export, MethodKind, find, methods};
use pleach_nn::{Init, Precision, Replaced, to_le_bytes};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{Batch, Model, all, assert_near, distance, example, fresh, model, moved};

const MODELS: [&str; 2] = ["llama-lora", "bert-lora"];

fn each(test: impl Fn(&'static str, &Model)) {
    for name in MODELS {
        let model = model(name, Precision::Fp32);
        for method in methods().filter(|method| method.card().kind == MethodKind::Adapter) {
            test(method.card().name, &model);
        }
    }
}

fn batch() -> Batch {
    Batch::of(&[6, 4, 5], &[11, 12, 13], Some(7))
}

#[test]
fn the_model_is_unchanged_until_the_first_step() {
    each(|method, model| {
        let config = example(method);
        let adapter = fresh(model, &config, Key::seed(3));
        let batch = batch().room(&*config);
        let off = distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[]));
        assert_eq!(off < 1e-5, config.card().identity_at_init, "{method}: off by {off}");
    });
}

#[test]
fn exactly_the_planned_tensors_are_built_and_trained() {
    each(|method, model| {
        let config = example(method);
        let adapter = moved(model, &config, 3);
        let plan = config.plan(&*model.config).unwrap();
        let built: Vec<_> = adapter.params().iter().map(|(name, leaf)| (name.to_owned(), leaf.size())).collect();
        let planned: Vec<_> = plan
            .trained()
            .map(|tensor| (tensor.name.clone(), tensor.shape.iter().map(|n| *n as i64).collect::<Vec<_>>()))
            .collect();
        assert_eq!(built, planned, "{method}: names, shapes and order");
        assert_eq!(adapter.params().numel() as u64, plan.params());

        let batch = batch().room(&*config);
        let output = model.run(&batch, &all(&batch, &adapter));
        batch.real(&output).square().sum(Kind::Float).backward();
        for (name, leaf) in adapter.params().iter() {
            assert!(leaf.grad().defined() && leaf.grad().abs().max().double_value(&[]) > 0.0, "{method}: {name}");
        }
        for site in model.config.sites().iter() {
            if let Some(weights) = model.backbone.weights(site.id) {
                assert!(!weights.weight.requires_grad() && !weights.weight.grad().defined(), "{}", site.path);
            }
        }
    });
}

#[test]
fn a_seed_gives_the_same_adapter_and_another_seed_another() {
    each(|method, model| {
        let config = example(method);
        let digest = |seed| fresh(model, &config, Key::seed(seed).named("task")).params().digest();
        assert_eq!(digest(1), digest(1));
        let plan = config.plan(&*model.config).unwrap();
        let any = |wanted: fn(Init) -> bool| plan.trained().any(|tensor| wanted(tensor.init));
        let drawn = any(|init| matches!(init, Init::Uniform { .. } | Init::Normal { .. }));
        // What a method works out may depend on the key or not.
        if drawn || !any(|init| init == Init::Derived) {
            assert_eq!(digest(1) != digest(2), drawn, "{method}");
        }
    });
}

#[test]
fn saved_and_loaded_it_is_the_same_to_the_bit() {
    each(|method, model| {
        let config = example(method);
        let adapter = moved(model, &config, 5);
        let restore = |(name, tensor): (String, Tensor)| {
            let bytes = to_le_bytes(&tensor);
            let shape: Vec<i64> = bytes.shape.iter().map(|n| *n as i64).collect();
            (name, Tensor::from_data_size(&bytes.bytes, &shape, Kind::Float))
        };
        let values: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().map(restore).collect();
        let whole = adapter.params().iter().all(|(name, _)| values.contains_key(name));
        // What is made by a network in training is read as what it made.
        let reader = if whole { Arc::clone(&config) } else { reader(model, &adapter) };
        let plan = Arc::new(reader.plan(&*model.config).unwrap());
        let again = Adapter::build(reader, plan, &*model.backbone, Key::seed(9), Some(&values)).unwrap();
        assert!(!whole || again.params().digest() == adapter.params().digest());
        let batch = batch().room(&*config);
        let (a, b) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &all(&batch, &again)));
        assert_eq!(distance(&a, &b), 0.0, "{method}");
    });
}

/// The configuration that a reader of the adapter's file has.
fn reader(model: &Model, adapter: &Adapter) -> Arc<dyn AdapterConfig> {
    let config = adapter.config();
    let said = config.adapter_config(&*model.config, adapter.plan(), &Export { base: "../model" });
    find(MethodKind::Adapter, config.card().name).unwrap().import(&said).unwrap().into()
}

#[test]
fn merged_it_gives_the_same_outputs() {
    each(|method, model| {
        let config = example(method);
        if !config.card().mergeable {
            return;
        }
        let adapter = moved(model, &config, 5);
        let mut merged = Replaced::default();
        for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
            assert!(!weights.weight.requires_grad() || adapter.plan().saved.contains(&site));
            merged.insert(site, weights);
        }
        let batch = batch();
        let groups = [pleach_nn::Group { rows: 0..3, hooks: &merged }];
        let (a, b) = (model.run(&batch, &groups), model.run(&batch, &all(&batch, &adapter)));
        assert_near(&batch.real(&a), &batch.real(&b), 1e-5);
        assert!(distance(&a, &model.run(&batch, &[])) > 1e-3, "{method}: it does something");
    });
}

#[test]
fn both_layouts_give_the_same() {
    each(|method, model| {
        let adapter = moved(model, &example(method), 7);
        let (padded, packed) = (batch(), Batch::of(&[6, 4, 5], &[11, 12, 13], None));
        let (padded, packed) = (padded.room(adapter.config()), packed.room(adapter.config()));
        let a = padded.real(&model.run(&padded, &all(&padded, &adapter)));
        assert_near(&a, &packed.real(&model.run(&packed, &all(&packed, &adapter))), 1e-5);
    });
}

/// Gradients of the mean over a batch are the weighted mean of those over its parts: what data-parallel training needs.
#[test]
fn two_halves_make_the_whole() {
    each(|method, model| {
        let adapter = moved(model, &example(method), 7);
        let batch = Batch::of(&[6, 4, 5, 5], &[11, 12, 13, 14], Some(6)).room(adapter.config());
        let grads = |part: &Batch| {
            adapter.params().zero_grads();
            part.real(&model.run(part, &all(part, &adapter))).square().sum(Kind::Float).backward();
            adapter.params().flatten_grads()
        };
        let whole = grads(&batch);
        let halves = grads(&batch.rows(0..2)) + grads(&batch.rows(2..4));
        let scale = whole.abs().max().double_value(&[]);
        assert_near(&(halves / scale), &(whole / scale), 1e-5);
    });
}

#[test]
fn an_alias_has_gradients_of_its_own() {
    each(|method, model| {
        let adapter = moved(model, &example(method), 7);
        let lane = adapter.alias().unwrap();
        let batch = batch().room(adapter.config());
        batch.real(&model.run(&batch, &all(&batch, &lane))).square().sum(Kind::Float).backward();
        assert!(adapter.params().iter().all(|(_, leaf)| !leaf.grad().defined()), "{method}");
        assert!(lane.params().flatten_grads().abs().max().double_value(&[]) > 0.0);
        adapter
            .params()
            .unflatten(&Tensor::zeros([adapter.params().numel() as i64], (Kind::Float, Device::Cpu)))
            .unwrap();
        assert_eq!(lane.params().digest(), adapter.params().digest());
    });
}

#[test]
fn declared_invalid_options_are_refused_with_their_code() {
    each(|_, model| {
        for method in methods() {
            for invalid in method.card().invalid {
                let options: Value = serde_json::from_str(invalid.options).unwrap();
                let parsed = method.parse(options.as_object().unwrap(), "spec.tasks[0].adapter");
                let error = parsed.and_then(|config| config.plan(&*model.config)).map(|_| ()).unwrap_err();
                assert_eq!(error.code(), invalid.code, "{}: {error:?}", invalid.options);
            }
        }
    });
}
