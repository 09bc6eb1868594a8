//! Adapter folders: PEFT's are read, ours have PEFT's fields, damaged ones name what is wrong.

use std::path::Path;

use pleach_base::code;
use pleach_methods::{Adapter, Export, import};
use pleach_nn::Precision;
use rstest::rstest;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::support::{case, model};

fn read(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[rstest]
#[case("llama-lora")]
#[case("llama-lora-qv-rslora")]
#[case("bert-lora")]
#[case("p_tuning-lstm")]
#[case("prefix-projected-bert")]
#[case("tokens-tied")]
#[case("norm-bert")]
#[case("norm-llama")]
#[case("prefix-bert")]
#[case("prefix-llama")]
#[case("prompt-bert")]
#[case("prompt-llama")]
#[case("fourierft-llama")]
#[case("hra-bert")]
#[case("ia3-llama")]
#[case("loha-bert")]
#[case("lokr-factor")]
#[case("randlora-llama")]
#[case("randlora-very-sparse")]
#[case("vera-unsaved")]
fn the_configuration_written_is_the_one_that_peft_wrote(#[case] name: &str) {
    let model = model(name, Precision::Fp32);
    let path = case(name).join("adapter");
    let imported = import(&path).unwrap();
    let plan = imported.config.plan(&*model.config).unwrap();
    assert_eq!(imported.base.as_deref(), Some("../model"));
    let ours = imported.config.adapter_config(&*model.config, &plan, &Export { base: "../model" });
    let theirs = read(&path.join("adapter_config.json"));
    let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs), "the same fields in the same order");
    for (key, value) in &theirs {
        // `30` and `30.0` are one number.
        let same = value.is_number() && ours[key].as_f64() == value.as_f64();
        assert!(same || &ours[key] == value, "{key}: {} for {value}", ours[key]);
    }
}

/// Ranks that AdaLoRA took away are in no tensor, and `rank_pattern` says which they were: as read, so written.
#[test]
fn ranks_that_were_taken_away_stay_away() {
    let model = model("adalora-allocates", Precision::Fp32);
    let folder = case("adalora-allocates").join("trained");
    let adapter = crate::support::imported(&model, &folder);
    let shapes = |list: Vec<(String, Vec<i64>)>| list.into_iter().collect::<std::collections::BTreeMap<_, _>>();
    let theirs = crate::support::tensors(&folder.join("adapter_model.safetensors"));
    let theirs = shapes(theirs.into_iter().map(|(name, tensor)| (name, tensor.size())).collect());
    assert!(theirs.values().any(|shape| shape.contains(&0)), "one site has lost all its ranks");
    let ours = adapter.exported().unwrap();
    assert_eq!(shapes(ours.into_iter().map(|(name, tensor)| (name, tensor.size())).collect()), theirs);
    let written = adapter.adapter_config(&*model.config, &Export { base: "../model" }).unwrap();
    let recorded = read(&folder.join("adapter_config.json"));
    assert_eq!(written["rank_pattern"], recorded["rank_pattern"]);
    assert_eq!(written.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
}

/// A copy of a recorded adapter with its tensors or configuration changed.
fn changed(
    tensors: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>),
    config: impl Fn(&mut Map<String, Value>),
) -> tempfile::TempDir {
    let source = case("llama-lora-qv-rslora").join("adapter");
    let folder = tempfile::tempdir().unwrap();
    let file = pleach_nn::TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
    let mut list: Vec<_> = file
        .names()
        .map(|name| file.get(name).unwrap())
        .map(|entry| (entry.name.to_owned(), entry.shape.to_vec(), entry.bytes.to_vec()))
        .collect();
    tensors(&mut list);
    let views = list
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("adapter_model.safetensors")).unwrap();
    let mut map = read(&source.join("adapter_config.json"));
    config(&mut map);
    std::fs::write(folder.path().join("adapter_config.json"), Value::Object(map).to_string()).unwrap();
    folder
}

fn refused(folder: &Path) -> pleach_base::Error {
    let model = model("llama-lora-qv-rslora", Precision::Fp32);
    let opened = import(folder).and_then(|imported| imported.check(&imported.config.plan(&*model.config)?));
    opened.unwrap_err()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    let same = |_: &mut Map<String, Value>| {};
    let missing = refused(changed(|list| list.retain(|(n, ..)| n != name), same).path());
    assert_eq!(missing.code(), code::ADAPTER_FORMAT);
    assert!(missing.message().contains(&format!("tensor `{name}`: missing")), "{missing}");

    let extra = refused(changed(|list| list.push(("junk".into(), vec![1], vec![0; 4])), same).path());
    assert!(extra.message().contains("tensor `junk`: not one of this adapter"), "{extra}");

    let turned = |list: &mut Vec<(String, Vec<usize>, Vec<u8>)>| {
        list.iter_mut().filter(|(n, ..)| n == name).for_each(|(_, shape, _)| shape.reverse());
    };
    let turned = refused(changed(turned, same).path());
    assert!(turned.message().contains(&format!("tensor `{name}`: expected [32, 8], found [8, 32]")), "{turned}");
}

/// PEFT puts one beside the adapter when the head or the token table is a target.
#[test]
fn a_copy_of_a_frozen_weight_must_be_the_models() {
    let name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight";
    let model = model("llama-lora-qv-rslora", Precision::Fp32);
    let weight = model.config.sites().by_path("model.layers.0.self_attn.q_proj").unwrap().id;
    let own = pleach_nn::to_le_bytes(&model.backbone.weights(weight).unwrap().weight);
    let build = |edit: &dyn Fn(&mut Vec<u8>)| {
        let add = |list: &mut Vec<(String, Vec<usize>, Vec<u8>)>| {
            let mut bytes = own.bytes.clone();
            edit(&mut bytes);
            list.push((name.to_owned(), own.shape.clone(), bytes));
        };
        let folder = changed(add, |_| {});
        let imported = import(folder.path())?;
        let plan = std::sync::Arc::new(imported.config.plan(&*model.config)?);
        imported.check(&plan)?;
        let (key, values) = (pleach_base::rng::Key::seed(0), imported.values()?);
        Adapter::build(std::sync::Arc::clone(&imported.config), plan, &*model.backbone, key, Some(&values)).map(|_| ())
    };
    build(&|_| {}).unwrap();
    let error = build(&|bytes| bytes[2] ^= 1).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_BASE);
    assert!(error.message().starts_with(&format!("tensor `{name}`")), "{error}");
}

#[test]
fn configurations_that_cannot_be_read_are_named() {
    let same = |_: &mut Vec<_>| {};
    let set = |key: &'static str, value: Value| {
        refused(changed(same, |map| drop(map.insert(key.into(), value.clone()))).path())
    };
    let unknown = set("peft_type", json!("LORE"));
    assert_eq!((unknown.code(), unknown.hint_text()), (code::ADAPTER_FORMAT, Some("did you mean `LORA`?")));
    assert_eq!(set("use_qalora", json!(true)).code(), code::METHOD_CONFIG);
    assert_eq!(set("surprise", json!(1)).code(), code::UNKNOWN_KEY);
    let without = refused(changed(same, |map| drop(map.remove("peft_type"))).path());
    assert_eq!(without.code(), code::ADAPTER_FORMAT);

    let folder = changed(same, |_| {});
    std::fs::write(folder.path().join("adapter_config.json"), "{").unwrap();
    assert_eq!(refused(folder.path()).code(), code::ADAPTER_FORMAT);
    let folder = changed(same, |_| {});
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(refused(folder.path()).code(), code::SAFETENSORS);
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(refused(folder.path()).code(), code::ADAPTER_FORMAT);
}

/// What PEFT drew from a seed we draw too, so that a file without them means the same.
#[rstest]
#[case("randlora-llama")]
#[case("randlora-very-sparse")]
#[case("vera-mixed")]
fn shared_projections_are_drawn_as_peft_draws_them(#[case] name: &str) {
    let model = model(name, Precision::Fp32);
    let imported = import(&case(name).join("adapter")).unwrap();
    let drawn = crate::support::fresh(&model, &imported.config, pleach_base::rng::Key::seed(1));
    let recorded = imported.values().unwrap();
    assert_eq!(drawn.kept().len(), 2);
    for (tensor, value) in drawn.kept() {
        assert!(value.equal(&recorded[tensor]), "{tensor} to the bit");
    }
}
