//! AdapterHub's folders: written and read they are the same, damaged they are refused with the tensor's name. Against the
//! library itself: tests/interop.

use std::path::Path;

use pleach_base::code;
use pleach_methods::adapterhub;
use pleach_nn::{Precision, families};
use serde_json::{Value, json};
use tch::Tensor;

use crate::support::{Model, model, moved, parse, tensors};
use crate::zoo::backbone;

fn write(model: &Model, method: &str, options: &Value, to: &Path) -> pleach_methods::Adapter {
    let adapter = moved(model, &parse(method, options), 3);
    for (name, bytes) in adapterhub::export(&adapter, &*model.config, "models/base", "task").unwrap() {
        std::fs::write(to.join(name), bytes).unwrap();
    }
    adapter
}

#[test]
fn what_is_written_is_read_again() {
    for name in ["llama-lora", "bert-lora"] {
        let model = model(name, Precision::Fp32);
        for (method, options) in [
            (
                "bottleneck",
                json!({"preset": "double_seq_bn_inv", "ln_before": true, "ln_after": true, "use_gating": true}),
            ),
            ("bottleneck", json!({"preset": "adapter_plus", "reduction_factor": {"0": 4, "default": 8}})),
            ("compacter", json!({"reduction_factor": 4, "factorized_phm_W": false, "learn_phm": false})),
            ("invertible", json!({"inv_adapter": "glow"})),
            ("lora", json!({"r": 3, "lora_alpha": 6, "layers_to_transform": [1]})),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let adapter = write(&model, method, &options, folder.path());
            assert!(adapterhub::is_folder(folder.path()));
            let again = adapterhub::import(folder.path(), &*model.backbone).unwrap();
            assert_eq!(again.params().digest(), adapter.params().digest(), "{name} {method} {options}");
            assert_eq!(again.kept().len(), adapter.kept().len());
        }
    }
}

#[test]
fn what_the_library_does_not_have_is_refused() {
    let bert = model("bert-lora", Precision::Fp32);
    let refused = |model: &Model, method: &str, options: Value| {
        let adapter = moved(model, &parse(method, &options), 3);
        let error = adapterhub::export(&adapter, &*model.config, "base", "task").map(drop).unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG, "{method} {options}: {error:?}");
        error.message().to_owned()
    };
    let message = refused(&bert, "compacter", json!({"reduction_factor": 32, "phm_dim": 4}));
    assert!(message.starts_with("reduction_factor: "), "{message}");
    refused(&bert, "lora", json!({"target_modules": ["layer.0.attention.self.query"], "rank_pattern": {"query": 3}}));
    refused(&bert, "lora", json!({"target_modules": ["attention.output.dense"]}));
    refused(&bert, "ia3", json!({}));
    let other = backbone(*families().iter().find(|family| family.name() == "gpt_neox").unwrap());
    let message = refused(&other, "bottleneck", json!({}));
    assert!(message.contains("gpt_neox"), "{message}");
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let model = model("bert-lora", Precision::Fp32);
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join(adapterhub::WEIGHTS);
    let damaged = |damage: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        write(&model, "bottleneck", &json!({}), folder.path());
        let mut values = tensors(&weights);
        damage(&mut values);
        let named: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), value)).collect();
        Tensor::write_safetensors(&named, &weights).unwrap();
        adapterhub::import(folder.path(), &*model.backbone).map(drop).unwrap_err()
    };
    let key = "bert.encoder.layer.0.output.adapters.task.adapter_up.weight";
    let missing = damaged(&|values| drop(values.remove(key)));
    let extra = damaged(&|values| drop(values.insert("bert.other".to_owned(), Tensor::from_slice(&[1f32]))));
    let shape = damaged(&|values| drop(values.insert(key.to_owned(), Tensor::from_slice(&[1f32]))));
    let broken = damaged(&|values| drop(values.insert(key.to_owned(), values[key].shallow_clone() * f64::NAN)));
    for (error, name) in
        [(missing, key), (extra, "bert.other"), (shape, "adapter_up.weight"), (broken, "adapter_up.weight")]
    {
        assert_eq!(error.code(), code::ADAPTER_FORMAT, "{error:?}");
        assert!(error.message().contains(name), "{error:?}");
    }

    write(&model, "bottleneck", &json!({}), folder.path());
    let config = folder.path().join(adapterhub::CONFIG);
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, code) in [
        ("\"model_type\": \"bert\"", "\"model_type\": \"gpt2\"", code::ADAPTER_BASE),
        ("\"non_linearity\": \"relu\"", "\"non_linearity\": \"step\"", code::METHOD_CONFIG),
        ("\"adapter_residual_before_ln\": false", "\"architecture\": \"reft\"", code::ADAPTER_FORMAT),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        std::fs::write(&config, changed).unwrap();
        let error = adapterhub::import(folder.path(), &*model.backbone).map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
    }
    std::fs::write(&config, text).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let error = adapterhub::import(folder.path(), &*model.backbone).map(drop).unwrap_err();
    assert!(error.message().contains("adapter.safetensors: no such file"), "{error:?}");
}
