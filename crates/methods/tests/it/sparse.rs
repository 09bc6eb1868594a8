//! Sparse differences as folders: composed, applied before others, refused.

use std::path::{Path, PathBuf};

use pleach_base::code;
use pleach_base::rng::Key;
use pleach_methods::files::{self, Opened};
use pleach_methods::{Adapter, import};
use pleach_nn::{HeadOptions, Precision};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{all, case, distance, fresh, model_at, parse};

fn base() -> PathBuf {
    case("llama-lora").join("model")
}

fn options(more: &Value) -> Value {
    let mut options =
        json!({"ft_params_num": 40, "full_ft_max_epochs_per_iteration": 1, "sparse_ft_max_epochs_per_iteration": 1});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

/// An untrained difference on the base model.
fn opened(more: &Value) -> Opened {
    let (dir, config) = pleach_nn::open(&base(), &HeadOptions::default()).unwrap();
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let config = parse("lt_sft", &options(more));
    let plan = std::sync::Arc::new(config.plan(backbone.config()).unwrap());
    let adapter = Adapter::build(config, plan, backbone.as_ref(), Key::seed(0), None).unwrap();
    Opened { dir, backbone, adapter }
}

/// One entry of a hundred differs; which ones depends on the seed.
fn scatter(adapter: &Adapter, seed: u64) {
    let mut rng = Key::seed(seed).rng();
    let mut entry = || if rng.below(100) == 0 { rng.normal() } else { 0.0 };
    let values: Vec<f32> = (0..adapter.params().numel()).map(|_| entry()).collect();
    adapter.params().unflatten(&Tensor::from_slice(&values)).unwrap();
}

/// A folder with such a difference.
fn written(folder: &Path, seed: u64, more: &Value) -> (PathBuf, Tensor) {
    let opened = opened(more);
    scatter(&opened.adapter, seed);
    let to = folder.join(format!("difference-{seed}"));
    files::write_adapter(&opened, &to, "../model").unwrap();
    (to, opened.adapter.params().flatten())
}

#[test]
fn differences_add_up_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let ((a, first), (b, second)) = (written(folder.path(), 1, &json!({})), written(folder.path(), 2, &json!({})));
    let compose = |folders: [&Path; 2]| files::compose(&folders, &base(), true, false).unwrap();
    let sum = compose([&a, &b]);
    assert!(sum.adapter.params().flatten().equal(&(&first + &second)));
    assert_eq!(compose([&b, &a]).adapter.params().digest(), sum.adapter.params().digest());
    let to = folder.path().join("sum");
    files::write_adapter(&sum, &to, "../model").unwrap();
    let again = files::open(&to, &base()).unwrap();
    assert_eq!(again.adapter.params().digest(), sum.adapter.params().digest());
    let exported = again.adapter.exported().unwrap();
    let values = exported.iter().filter(|(name, _)| name.ends_with(".values"));
    let entries: i64 = values.map(|(_, values)| values.numel() as i64).sum();
    assert_eq!(entries, (first + second).count_nonzero(None).int64_value(&[]), "nothing dense is stored");
}

#[test]
fn a_difference_on_top_of_another_holds_both_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (language, change) = written(folder.path(), 1, &json!({}));
    let model = model_at(&base(), Precision::Fp32);
    let batch = model.batch(&[6, 4], Some(7));
    let run = |adapter: &Adapter| model.run(&batch, &all(&batch, adapter));
    let task = opened(&json!({"base_sfts": [language]}));
    let alone = files::open(&language, &base()).unwrap();
    assert_eq!(distance(&run(&task.adapter), &run(&alone.adapter)), 0.0, "before training it is the other one");
    scatter(&task.adapter, 3);
    let to = folder.path().join("task");
    files::write_adapter(&task, &to, "../model").unwrap();
    // Whoever reads it needs no other folder.
    std::fs::remove_dir_all(&language).unwrap();
    let again = files::open(&to, &base()).unwrap();
    assert_eq!(distance(&run(&again.adapter), &run(&task.adapter)), 0.0);
    let own = files::compose(&[&to], &base(), true, false).unwrap();
    assert!(own.adapter.params().flatten().equal(&task.adapter.params().flatten()), "its own part alone");
    assert!(distance(&run(&own.adapter), &run(&task.adapter)) > 1e-3 && change.abs().max().double_value(&[]) > 0.0);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = written(folder.path(), 1, &json!({}));
    let compose = |folders: &[&Path]| files::compose(folders, &base(), true, false).map(|_| ()).unwrap_err();
    let error = compose(&[&a, &case("llama-lora").join("adapter")]);
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().contains("lora"), "{error}");
    let manifest = json!({"meta": {"base_fingerprint": "sha256:of another model"}});
    std::fs::write(a.join("manifest.json"), manifest.to_string()).unwrap();
    assert_eq!(compose(&[&a]).code(), code::ADAPTER_BASE);

    let model = model_at(&base(), Precision::Fp32);
    let narrow = parse("lt_sft", &options(&json!({"base_sfts": [a], "freeze_embeddings": true})));
    let plan = std::sync::Arc::new(narrow.plan(&*model.config).unwrap());
    let error = Adapter::build(narrow, plan, &*model.backbone, Key::seed(0), None).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("base_sfts: ") && error.message().contains("embed"), "{error}");
}

#[test]
fn a_damaged_difference_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (a, _) = written(folder.path(), 1, &json!({}));
    let imported = import(&a).unwrap();
    let model = model_at(&base(), Precision::Fp32);
    let plan = std::sync::Arc::new(imported.config.plan(&*model.config).unwrap());
    let mut values = imported.values().unwrap();
    let name = values.keys().find(|name| name.ends_with("q_proj.weight.index_steps")).unwrap().clone();
    let steps = values[&name].shallow_clone();
    values.insert(name.clone(), steps * 1_000_000);
    let config = std::sync::Arc::clone(&imported.config);
    let error = Adapter::build(config, plan, &*model.backbone, Key::seed(0), Some(&values)).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_FORMAT);
    assert!(error.message().contains(name.trim_end_matches(".index_steps")), "{error}");
    let untrained = fresh(&model, &parse("lt_sft", &options(&json!({}))), Key::seed(0));
    assert_eq!(untrained.params().flatten().abs().sum(Kind::Double).double_value(&[]), 0.0);
}
