//! Routers: what a mixture is made of, and what it keeps of its experts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::router::Expert;
use pleach_methods::{Adapter, AdapterConfig, Export, Keep, MethodKind, find};
use pleach_nn::{HeadOptions, ModelDir, Precision, configure, families};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::support::{Model, all, assert_near, distance, fresh, model, moved, parse};
use crate::zoo::backbone;

fn llama() -> Model {
    backbone(*families().iter().find(|family| family.name() == "llama").unwrap())
}

fn lora() -> Map<String, Value> {
    json!({"r": 2, "target_modules": "all-linear"}).as_object().unwrap().clone()
}

fn mixture(method: &str, options: Value, experts: Vec<Expert>) -> pleach_base::Result<Arc<dyn AdapterConfig>> {
    let method = find(MethodKind::Router, method).unwrap();
    let router = method.router(options.as_object().unwrap(), "spec.router")?.unwrap();
    Ok(router.combine(experts)?.into())
}

/// An adapter as a folder, as a step has it.
fn saved(model: &Model, adapter: &Adapter, folder: &Path) {
    let config = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    Tensor::write_safetensors(&adapter.exported().unwrap(), folder.join("adapter_model.safetensors")).unwrap();
}

/// Gates that sum to one leave of equal experts one of them, whatever the tokens choose: through whole feed-forward parts,
/// at single maps, and with scalings of a first pass.
#[test]
fn a_mixture_of_equal_experts_is_one_of_them() {
    let model = llama();
    let one = moved(&model, &parse("lora", &Value::Object(lora())), 3);
    for (router, options) in [
        ("mixlora", json!({"num_experts": 3, "router_init_range": 0.5})),
        ("mixlora", json!({"num_experts": 3, "top_k": 1, "router_init_range": 0.5})),
        ("loramoe", json!({"num_experts": 3})),
        ("xlora", json!({"num_experts": 3})),
        ("mhr", json!({"num_experts": 3})),
        ("mhr", json!({"num_experts": 3, "n_splits": 4, "router_granularity": "blockwise"})),
    ] {
        let config = mixture(router, options, Expert::copies("lora", &lora(), 3)).unwrap();
        let many = fresh(&model, &config, Key::seed(5));
        for (name, value) in one.params().iter() {
            for expert in 0..3 {
                let leaf = many.params().get(&format!("e{expert}.{name}")).unwrap();
                leaf.detach().copy_(&value.detach());
            }
        }
        for width in [Some(7), None] {
            let batch = model.batch(&[6, 4, 5], width);
            let (a, b) = (model.run(&batch, &all(&batch, &one)), model.run(&batch, &all(&batch, &many)));
            assert_near(&batch.real(&b), &batch.real(&a), 1e-5);
            assert!(distance(&a, &model.run(&batch, &[])) > 1e-3, "{router}: the experts do something");
        }
    }
}

/// The nucleus leaves gates as they are, so that even new experts change the model: its card says so of the usual form.
#[test]
fn a_nucleus_scales_the_frozen_part() {
    let model = llama();
    let options =
        json!({"num_experts": 3, "routing_strategy": "mixlora-dynamic", "top_p": 0.4, "router_init_range": 0.5});
    let config = mixture("mixlora", options, Expert::copies("lora", &lora(), 3)).unwrap();
    let (batch, adapter) = (model.batch(&[6, 4], None), fresh(&model, &config, Key::seed(5)));
    assert!(distance(&model.run(&batch, &all(&batch, &adapter)), &model.run(&batch, &[])) > 1e-3);
}

/// Experts that are there already keep their values, of which no gradient is wanted; the file has them and says what they
/// are by digest.
#[test]
fn published_experts_stay_as_they_are() {
    let (model, folder) = (llama(), tempfile::tempdir().unwrap());
    let mut experts = Vec::new();
    let mut adapters = Vec::new();
    for seed in 0..2 {
        let adapter = moved(&model, &parse("lora", &Value::Object(lora())), seed);
        let at = folder.path().join(format!("expert-{seed}"));
        saved(&model, &adapter, &at);
        experts.push(Expert::of_folder(format!("e{seed}"), &at, "somewhere").unwrap());
        adapters.push(adapter);
    }
    let options = json!({"experts": ["a", "b"], "top_k": 1, "router_init_range": 0.5});
    let config = mixture("mixlora", options, experts.clone()).unwrap();
    let adapter = fresh(&model, &config, Key::seed(9));
    assert!(adapter.params().iter().all(|(name, _)| name.ends_with(".router.weight")), "the router alone is trained");
    let plan = adapter.plan();
    assert!(plan.tensors.iter().all(|tensor| matches!(tensor.keep, Keep::Trained | Keep::Saved)));
    for (expert, own) in adapters.iter().enumerate() {
        for (name, value) in own.params().iter() {
            assert!(adapter.kept()[&format!("e{expert}.{name}")].equal(&value.detach()), "{expert} {name}");
        }
    }
    let config = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    let sources = config["expert_sources"].as_array().unwrap();
    assert_eq!((sources[0]["from"].as_str(), sources[0]["method"].as_str()), (Some("somewhere"), Some("lora")));
    assert_ne!(sources[0]["sha256"], sources[1]["sha256"]);
    assert_ne!(sources[0]["file_sha256"], sources[1]["file_sha256"]);
    // What was written is read without the folders.
    let at = folder.path().join("router");
    saved(&model, &adapter, &at);
    std::fs::remove_dir_all(folder.path().join("expert-0")).unwrap();
    let again = crate::support::imported(&model, &at);
    let batch = model.batch(&[6, 4, 5], None);
    let (a, b) = (model.run(&batch, &all(&batch, &adapter)), model.run(&batch, &all(&batch, &again)));
    assert_eq!(distance(&a, &b), 0.0);
    // Trained too, they are parameters.
    let options = json!({"experts": ["a", "b"], "train": "all"});
    let plan = mixture("mixlora", options, Expert::copies("lora", &lora(), 2)).unwrap().plan(&*model.config).unwrap();
    assert!(plan.trained().any(|tensor| tensor.name.starts_with("e0.")));
}

#[test]
fn the_counts_of_a_mixture() {
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
        "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5});
    let model = configure(&ModelDir::of_config(config.as_object().unwrap().clone()), &HeadOptions::default()).unwrap();
    let options = json!({"r": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]});
    let experts = Expert::copies("lora", options.as_object().unwrap(), 8);
    let plan = mixture("mixlora", json!({"num_experts": 8}), experts).unwrap().plan(&*model).unwrap();
    // Eight experts of three maps of rank 8, and a router, in each of 32 layers.
    assert_eq!(plan.params(), 32 * (8 * 3 * 8 * (4096 + 11008) + 8 * 4096));
    let experts = Expert::copies("lora", json!({"r": 4}).as_object().unwrap(), 3);
    let options = json!({"num_experts": 3, "layerwise_scalings": true, "xlora_depth": 2, "xlora_size": 64});
    let plan = mixture("xlora", options, experts).unwrap().plan(&*model).unwrap();
    let maps = 64 * 4 * (4096 + 4096);
    assert_eq!(plan.params(), 3 * maps + (4096 * 64 + 64) + (64 * 3 * 64 + 3 * 64));
}

/// A token's expert is computed with draws of its own, wherever it stands in the batch.
#[test]
fn dropout_of_experts_does_not_know_the_company() {
    let model = llama();
    let options = json!({"r": 2, "target_modules": "all-linear", "lora_dropout": 0.3});
    let options = options.as_object().unwrap();
    let config = mixture(
        "mixlora",
        json!({"num_experts": 3, "router_init_range": 0.5, "jitter_noise": 0.1}),
        Expert::copies("lora", options, 3),
    );
    let adapter = moved(&model, &config.unwrap(), 4);
    let whole = model.batch(&[6, 4, 5], Some(7));
    let train = |batch: &crate::support::Batch| batch.real(&model.run_at(batch, &all(batch, &adapter), true, 2));
    let together = train(&whole);
    let apart = Tensor::cat(&[train(&whole.rows(0..1)), train(&whole.rows(1..3))], 0);
    assert_near(&apart, &together, 1e-5);
    assert_near(&train(&model.batch(&[6, 4, 5], None)), &together, 1e-5);
    let eval = whole.real(&model.run(&whole, &all(&whole, &adapter)));
    assert!(distance(&eval, &together) > 1e-3, "something is dropped");
}

/// The sums that hooks add to are those of all real tokens, however they lie; the balance follows from them.
#[test]
fn sums_count_every_real_token_once_a_router() {
    let model = llama();
    let config =
        mixture("mixlora", json!({"num_experts": 3, "router_init_range": 0.5}), Expert::copies("lora", &lora(), 3));
    let adapter = moved(&model, &config.unwrap(), 4);
    let shape = adapter.config().sums(adapter.plan()).unwrap();
    let sums = |batch: &crate::support::Batch| {
        drop(model.run_at(batch, &all(batch, &adapter), true, 0));
        adapter.board().take_sums(shape).unwrap().detach()
    };
    let (padded, packed) = (sums(&model.batch(&[6, 4, 5], Some(9))), sums(&model.batch(&[6, 4, 5], None)));
    assert_near(&padded, &packed, 1e-3);
    let tokens = Vec::<f64>::try_from(padded.select(1, 7).to_kind(Kind::Double)).unwrap();
    assert!(tokens.iter().all(|tokens| *tokens == 15.0), "{tokens:?}");
    let slots = Vec::<f64>::try_from(padded.narrow(1, 0, 3).sum_dim_intlist(1i64, false, Kind::Double)).unwrap();
    assert!(slots.iter().all(|slots| *slots == 30.0), "two experts a token: {slots:?}");
    drop(model.run(&model.batch(&[6], None), &all(&model.batch(&[6], None), &adapter)));
    assert!(adapter.board().take_sums(shape).is_none(), "nothing is noted in evaluation");
    let flat = Vec::<f64>::try_from(padded.to_kind(Kind::Double).flatten(0, -1)).unwrap();
    let routing = adapter.config().routing(adapter.plan(), &flat).unwrap();
    let metrics: BTreeMap<_, _> = routing.metrics.into_iter().collect();
    assert!(metrics["router/effective_experts"] > 2.0, "{metrics:?}");
    let parts: f64 = (0..3).map(|expert| metrics[&format!("router/part/e{expert}")]).sum();
    assert!((parts - 1.0).abs() < 1e-9);
}

#[test]
fn experts_that_cannot_be_mixed_are_refused() {
    let model = model("llama-lora", Precision::Fp32);
    let refused = |method: &str, options: Value| {
        let experts = Expert::copies(method, options.as_object().unwrap(), 2);
        let made =
            mixture("mixlora", json!({"num_experts": 2}), experts).and_then(|config| config.plan(&*model.config));
        let error = made.unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG, "{error:?}");
        error.message().to_owned()
    };
    assert!(refused("prompt", json!({"num_virtual_tokens": 3})).contains("experts"));
    assert!(refused("bottleneck", json!({})).contains("cannot be routed"));
}

/// Two LoRA folders that act at other maps and with other scales, and what they add alone.
fn folders(model: &Model, folder: &Path) -> (Vec<Expert>, Vec<Adapter>) {
    let options = [
        json!({"r": 2, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 4, "lora_dropout": 0.5}),
        json!({"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 1}),
    ];
    let make = |(number, options): (usize, &Value)| {
        let adapter = moved(model, &parse("lora", options), number as u64);
        let at = folder.join(format!("expert-{number}"));
        saved(model, &adapter, &at);
        (Expert::of_folder(format!("e{number}"), &at, "somewhere").unwrap(), adapter)
    };
    options.iter().enumerate().map(make).unzip()
}

/// Sets all logits `[tasks, parts * experts]`.
fn route(adapter: &Adapter, logits: &Tensor) {
    for (_, leaf) in adapter.params().iter().filter(|(name, _)| name.ends_with("module_logits")) {
        leaf.detach().copy_(logits);
    }
}

fn tasks(batch: crate::support::Batch, tasks: &[u32]) -> crate::support::Batch {
    crate::support::Batch { layout: batch.layout.of_tasks(tasks.to_vec()), ..batch }
}

/// A task that has all of one expert is that expert, its scale and the maps where it does not act included, whatever the
/// other rows of the batch do; logits alone are trained.
#[test]
fn a_task_that_is_routed_to_one_expert_is_that_expert() {
    let (model, folder) = (llama(), tempfile::tempdir().unwrap());
    let (experts, alone) = folders(&model, folder.path());
    for parts in [1, 4] {
        let options = json!({"experts": ["a", "b"], "n_splits": parts, "task_names": ["x", "y", "new"]});
        let adapter = fresh(&model, &mixture("mhr", options, experts.clone()).unwrap(), Key::seed(9));
        assert!(adapter.params().iter().all(|(name, _)| name.ends_with(".poly_router.module_logits")));
        let row = |to: [f32; 2]| Tensor::from_slice(&to).repeat([parts]);
        route(&adapter, &Tensor::stack(&[row([40.0, -40.0]), row([-40.0, 40.0]), row([0.0, 0.0])], 0));
        for width in [Some(7), None] {
            for train in [false, true] {
                let batch = tasks(model.batch(&[6, 4, 5], width), &[1, 0, 2]);
                let run = |adapter: &Adapter, batch: &crate::support::Batch, train| {
                    model.run_at(batch, &all(batch, adapter), train, 3)
                };
                let mixed = run(&adapter, &batch, train);
                let of = |output: &Tensor, row: usize| match width {
                    Some(_) => output.get(row as i64).narrow(0, 0, [6, 4, 5][row]),
                    None => output.narrow(0, [0, 6, 10][row], [6, 4, 5][row]),
                };
                let apart = |row: usize, expert: usize| {
                    distance(&of(&mixed, row), &of(&run(&alone[expert], &batch, false), row))
                };
                // Training drops nothing of an expert.
                assert!(apart(0, 1) < 1e-5 && apart(1, 0) < 1e-5, "{parts} parts: {} {}", apart(0, 1), apart(1, 0));
                assert!(apart(0, 0) > 1e-3 && apart(2, 0) > 1e-4 && apart(2, 1) > 1e-4);
            }
        }
    }
}

/// Factors are averaged, not results: with equal weights it is the LoRA of the averages.
#[test]
fn a_mixture_of_factors_is_the_lora_of_their_averages() {
    let (model, folder) = (llama(), tempfile::tempdir().unwrap());
    let (experts, alone) = folders(&model, folder.path());
    let adapter = fresh(&model, &mixture("mhr", json!({"experts": ["a", "b"]}), experts).unwrap(), Key::seed(9));
    route(&adapter, &Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu)));
    let options = json!({"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]});
    let average = fresh(&model, &parse("lora", &options), Key::seed(1));
    for (name, leaf) in average.params().iter() {
        let scales = if name.contains("lora_B") { [2.0, 0.5] } else { [1.0, 1.0] };
        let parts =
            alone.iter().zip(scales).filter_map(|(expert, scale)| Some(expert.params().get(name)? * (scale / 2.0)));
        let sum = parts.reduce(|sum, part| sum + part).unwrap();
        tch::no_grad(|| leaf.detach().copy_(&sum));
    }
    let batch = model.batch(&[6, 4, 5], None);
    let run = |adapter: &Adapter| model.run(&batch, &all(&batch, adapter));
    assert_near(&run(&adapter), &run(&average), 1e-5);
    let results = (run(&alone[0]) + run(&alone[1])) / 2.0;
    assert!(distance(&results, &run(&adapter)) > 1e-4, "the average of results is something else");
}

#[test]
fn one_task_of_a_router_is_merged() {
    let (model, folder) = (llama(), tempfile::tempdir().unwrap());
    let (experts, _) = folders(&model, folder.path());
    let options = |more: Value| {
        let mut options = json!({"experts": ["a", "b"], "n_splits": 2, "task_names": ["x", "y"]});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let build = |more| moved(&model, &mixture("mhr", options(more), experts.clone()).unwrap(), 4);
    let error = build(json!({})).merge(model.config.sites(), &*model.backbone).map(drop).unwrap_err();
    assert!(error.code() == code::METHOD_CONFIG && error.hint_text().unwrap().contains("`export_task`"), "{error:?}");
    let adapter = build(json!({"export_task": "y"}));
    let mut merged = pleach_nn::Replaced::default();
    for (site, weights) in adapter.merge(model.config.sites(), &*model.backbone).unwrap() {
        merged.insert(site, weights);
    }
    let batch = tasks(model.batch(&[6, 4], None), &[1, 1]);
    let found = model.run(&batch, &[pleach_nn::Group { rows: 0..2, hooks: &merged }]);
    assert_near(&found, &model.run(&batch, &all(&batch, &adapter)), 3e-5);
    let other = tasks(model.batch(&[6, 4], None), &[0, 0]);
    assert!(distance(&found, &model.run(&other, &all(&other, &adapter))) > 1e-4);
}

#[test]
fn experts_whose_factors_have_no_average_are_refused() {
    let model = model("llama-lora", Precision::Fp32);
    let refused = |experts: [(&str, Value); 2]| {
        let experts =
            experts.into_iter().flat_map(|(method, options)| Expert::copies(method, options.as_object().unwrap(), 1));
        let named = experts.enumerate().map(|(number, mut expert)| {
            expert.child.name = format!("e{number}");
            expert
        });
        let made = mixture("mhr", json!({"num_experts": 2}), named.collect());
        let error = made.and_then(|config| config.plan(&*model.config)).unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG, "{error:?}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("experts")), "{error:?}");
        error.message().to_owned()
    };
    let lora = |r: u32| ("lora", json!({"r": r, "target_modules": ["q_proj"]}));
    assert!(refused([lora(2), lora(3)]).starts_with("experts[1]: is of rank 3, one before it of rank 2, at `model."));
    let dora = ("lora", json!({"r": 2, "target_modules": ["q_proj"], "use_dora": true}));
    assert!(refused([dora, lora(2)]).starts_with("experts[0]: does more than"));
    assert!(refused([lora(2), ("ia3", json!({}))]).starts_with("experts[1]: has no factors of LoRA"));
}
