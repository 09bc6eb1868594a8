//! What composes with LoRA, on every family that plans it: the same duties as plain LoRA's.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::Adapter;
use pleach_nn::{Group, Part, Replaced, families};
use serde_json::{Value, json};
use tch::Tensor;

use crate::support::{Model, all, assert_near, distance, fresh, moved, parse};
use crate::zoo::backbone;

/// Options, and whether an adapter with them leaves the model unchanged until the first step.
fn variants() -> Vec<Value> {
    vec![
        json!({"use_dora": true, "use_rslora": true}),
        json!({"use_dora": true, "init_lora_weights": "pissa", "bias": "lora_only"}),
        json!({"use_dora": true, "target_modules": ".*(projection|conv1)"}),
        json!({"init_lora_weights": "pissa"}),
        json!({"init_lora_weights": "pissa_niter_2"}),
        json!({"init_lora_weights": "olora"}),
        json!({"init_lora_weights": "orthogonal"}),
        json!({"bias": "lora_only"}),
        json!({"trainable_token_indices": [4, 7]}),
    ]
}

fn each(test: impl Fn(&Model, &Value)) {
    let mut planned = BTreeMap::new();
    for family in families() {
        let model = backbone(*family);
        for mut options in variants() {
            options["r"] = json!(4);
            let config = parse("lora", &options);
            if config.plan(&*model.config).is_ok() {
                *planned.entry(options.to_string()).or_insert(0) += 1;
                test(&model, &options);
            }
        }
    }
    assert_eq!(planned.len(), variants().len());
    assert!(planned.values().all(|count| *count > 1), "each on two families at least: {planned:?}");
}

#[test]
fn variants_begin_as_the_model() {
    each(|model, options| {
        let adapter = fresh(model, &parse("lora", options), Key::seed(3));
        let batch = model.batch(&[6, 4, 5], Some(7));
        let off = distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[]));
        assert!(off < 2e-5, "{options}: {off}");
    });
}

#[test]
fn variants_merge_and_read_back_with_another_key() {
    each(|model, options| {
        let config = parse("lora", options);
        let adapter = moved(model, &config, 5);
        let batch = model.batch(&[6, 4, 5], Some(7));
        let found = model.run(&batch, &all(&batch, &adapter));
        assert!(distance(&found, &model.run(&batch, &[])) > 1e-3, "{options}");

        let mut merged = Replaced::default();
        for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
            merged.insert(site, weights);
        }
        let groups = [Group { rows: 0..3, hooks: &merged }];
        assert_near(&batch.real(&model.run(&batch, &groups)), &batch.real(&found), 2e-5);

        // What is taken from the frozen weight is in no file and must not depend on the key.
        let values: BTreeMap<_, _> = adapter.exported().unwrap().into_iter().collect();
        let plan = Arc::new(adapter.plan().clone());
        let again = Adapter::build(Arc::clone(&config), plan, &*model.backbone, Key::seed(9), Some(&values)).unwrap();
        assert_eq!(distance(&model.run(&batch, &all(&batch, &again)), &found), 0.0, "{options}");
    });
}

/// Dropout that hits nothing takes another way through DoRA: it must lead to the same place.
#[test]
fn the_way_with_dropout_is_the_way_without() {
    each(|model, options| {
        let mut dropping = options.clone();
        dropping["lora_dropout"] = json!(1e-12);
        let (quiet, dropping) = (moved(model, &parse("lora", options), 5), moved(model, &parse("lora", &dropping), 5));
        for width in [Some(7), None] {
            let batch = model.batch(&[6, 4, 5], width);
            let a = batch.real(&model.run_at(&batch, &all(&batch, &quiet), true, 3));
            assert_near(&batch.real(&model.run_at(&batch, &all(&batch, &dropping), true, 3)), &a, 2e-5);
        }
    });
}

/// The product that PiSSA begins with is the best of its rank: what it leaves has the singular values that come after.
#[test]
fn pissa_takes_the_largest_singular_values() {
    let family = families().iter().find(|family| family.name() == "gpt2").unwrap();
    let model = backbone(*family);
    let site = model.config.sites().iter().find(|site| site.part == Part::Qkv).unwrap();
    let weight = model.backbone.weights(site.id).unwrap().weight.tr(); // [out, in], stored the other way round
    let singular = |w: &Tensor| w.svd(true, true).1;
    for (init, most) in [("pissa", 1e-5), ("pissa_niter_30", 1e-3)] {
        let options = json!({"r": 3, "lora_alpha": 5, "init_lora_weights": init});
        let adapter = fresh(&model, &parse("lora", &options), Key::seed(3));
        let part = |part: &str| adapter.parts().part(site.id, part).unwrap().detach();
        let left = &weight - part("lora_B").matmul(&part("lora_A")) * (5.0 / 3.0);
        let (before, after) = (singular(&weight), singular(&left));
        let rest = before.size()[0] - 3;
        assert_near(&after.narrow(0, 0, rest), &before.narrow(0, 3, rest), most);
    }
}

/// Experts are merged each into its own matrix.
#[test]
fn factors_of_experts_merge_into_the_stack() {
    let family = families().iter().find(|family| family.name() == "mixtral").unwrap();
    let model = backbone(*family);
    let options =
        json!({"r": 3, "use_rslora": true, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]});
    let adapter = moved(&model, &parse("lora", &options), 5);
    let batch = model.batch(&[6, 4, 5], Some(7));
    let found = model.run(&batch, &all(&batch, &adapter));
    let mut merged = Replaced::default();
    for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
        assert_eq!(weights.weight.size().len(), 3);
        merged.insert(site, weights);
    }
    let groups = [Group { rows: 0..3, hooks: &merged }];
    assert_near(&batch.real(&model.run(&batch, &groups)), &batch.real(&found), 2e-5);
    assert!(distance(&found, &model.run(&batch, &[])) > 1e-3);
}
