//! Recorded outputs of the bare models, and folders that do not fit.

use pleach_base::code;
use pleach_nn::{HeadKind, HeadOptions, Init, Inputs, Layout, ModelDir, NoHooks, Precision, Role, configure, open};
use rstest::rstest;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::support::{assert_near, case, distance, io, model, real, run};

#[rstest]
#[case("llama-lora")]
#[case("llama-lora-qv-rslora")]
#[case("bert-lora")]
fn base_logits_are_the_recorded_ones(#[case] name: &str) {
    let (model, io) = (model(name, None, Precision::Fp32), io(name));
    let mask = &io["eval.attention_mask"];
    let lengths: Vec<i64> = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).try_into().unwrap();
    let lengths: Vec<usize> = lengths.into_iter().map(|n| n as usize).collect();
    assert!(lengths.iter().any(|n| *n < mask.size()[1] as usize), "the case has a padded row");
    let samples = (0..lengths.len() as u64).collect();
    let layout = Layout::padded(lengths, mask.size()[1] as usize, samples, Device::Cpu);
    let batch = (layout, Inputs::ids(io["eval.input_ids"].shallow_clone()));
    let found = run(&model, &batch, &[]);
    let expected = &io["eval.base_logits"];
    if expected.dim() == 2 {
        assert_near(&found, expected, 2e-4);
    } else {
        assert_near(&real(&batch.0, &found), &real(&batch.0, expected), 2e-4);
    }
    assert!(!found.requires_grad(), "the frozen model builds no graph");
}

#[test]
fn sites_are_the_modules_that_peft_sees() {
    let bert = model("bert-lora", None, Precision::Fp32).config;
    for path in ["bert.encoder.layer.0.attention.self.query", "bert.pooler.dense", "classifier"] {
        assert!(bert.sites().by_path(path).is_some(), "{path}");
    }
    assert_eq!(bert.sites().by_path("classifier").unwrap().role, Role::Head);
    let dir = ModelDir::open(&case("bert-lora").join("model")).unwrap();
    let stored: usize = dir.names().map(|name| dir.get(name).unwrap().shape.iter().product::<usize>()).sum();
    assert_eq!(bert.num_params(), stored as u64, "every stored tensor once");
    let bare = model("bert-lora", Some(HeadKind::Embedding), Precision::Fp32).config;
    assert_eq!(bare.info().class, "BertModel");
    assert!(bare.sites().by_path("encoder.layer.0.attention.self.query").is_some());
    assert!(!bare.sites().by_path("pooler.dense").unwrap().runs, "mean pooling does not run it");
    let llama = model("llama-lora", None, Precision::Fp32).config;
    assert!(llama.sites().by_path("model.layers.1.mlp.down_proj").is_some());
    assert_eq!(llama.sites().by_path("model.layers.1.self_attn@kv").unwrap().dims.heads.unwrap().kv, 2);
}

/// A copy of a recorded model with some tensors changed.
fn changed(name: &str, edit: impl Fn(&mut Value, &mut Vec<(String, Vec<usize>, Vec<u8>)>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelDir::open(&case(name).join("model")).unwrap();
    let mut config = Value::Object(source.config().clone());
    let mut tensors: Vec<_> = source
        .names()
        .map(|name| source.get(name).unwrap())
        .map(|entry| (entry.name.to_owned(), entry.shape.to_vec(), entry.bytes.to_vec()))
        .collect();
    edit(&mut config, &mut tensors);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let half = tensors.len() / 2;
    let mut index = serde_json::Map::new();
    for (part, list) in [&tensors[..half], &tensors[half..]].into_iter().enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", part + 1);
        let view =
            |(name, shape, bytes): &'_ (String, Vec<usize>, Vec<u8>)| (name.clone(), shape.clone(), bytes.clone());
        let owned: Vec<_> = list.iter().map(view).collect();
        let views: Vec<_> = owned
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
            .collect();
        safetensors::serialize_to_file(views, None, &folder.path().join(&file)).unwrap();
        index.extend(owned.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({"weight_map": index}).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn shards_and_the_names_of_the_bare_model_load_to_the_same() {
    let bare = changed("bert-lora", |config, tensors| {
        config["architectures"] = json!(["BertModel"]);
        tensors.retain(|(name, ..)| name.starts_with("bert."));
        for (name, ..) in tensors.iter_mut() {
            *name = name.trim_start_matches("bert.").replace("LayerNorm.weight", "LayerNorm.gamma");
        }
        tensors.push(("embeddings.position_ids".into(), vec![1, 80], vec![0; 320]));
    });
    let (dir, config) = open(bare.path(), &HeadOptions::default()).unwrap();
    assert_eq!(config.info().class, "BertModel");
    let split = crate::support::Model { backbone: config.build(&dir, Device::Cpu, Precision::Fp32).unwrap(), config };
    let whole = model("bert-lora", Some(HeadKind::Embedding), Precision::Fp32);
    let batch = crate::support::batch(&[5, 9]);
    assert_eq!(distance(&run(&split, &batch.padded, &[]), &run(&whole, &batch.padded, &[])), 0.0);

    let head =
        HeadOptions { kind: Some(HeadKind::SequenceClassification), num_labels: Some(4), ..HeadOptions::default() };
    let config = configure(&dir, &head).unwrap();
    let fresh = config.tensors().iter().find(|tensor| tensor.name == "classifier.weight").unwrap();
    assert_eq!((fresh.shape.as_slice(), fresh.fresh), ([4, 64].as_slice(), Some(Init::Normal { std: 0.02 })));
    let build = || config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    let site = config.sites().by_path("classifier").unwrap().id;
    let (one, two) = (build(), build());
    let weight = |b: &dyn pleach_nn::Backbone| b.weights(site).unwrap().weight.shallow_clone();
    assert_eq!(distance(&weight(&*one), &weight(&*two)), 0.0, "a new head is the same every time");
    assert!(weight(&*one).abs().max().double_value(&[]) > 0.01);
}

#[test]
fn a_fingerprint_does_not_depend_on_shards() {
    let sharded = changed("llama-lora", |_, _| {});
    let whole = ModelDir::open(&case("llama-lora").join("model")).unwrap();
    assert_eq!(
        ModelDir::open(sharded.path()).unwrap().fingerprint_in(None).unwrap(),
        whole.fingerprint_in(None).unwrap()
    );
    let other = ModelDir::open(&case("llama-lora-qv-rslora").join("model")).unwrap();
    assert_ne!(other.fingerprint_in(None).unwrap(), whole.fingerprint_in(None).unwrap());
}

#[test]
fn weights_that_do_not_fit_name_the_tensor_and_both_shapes() {
    let lacking = changed("llama-lora", |_, tensors| tensors.retain(|(name, ..)| !name.contains("1.mlp.up_proj")));
    let (dir, config) = open(lacking.path(), &HeadOptions::default()).unwrap();
    let error = config.check(&dir).unwrap_err();
    assert_eq!(error.code(), code::MODEL_MISMATCH);
    assert!(error.message().starts_with("tensor `model.layers.1.mlp.up_proj.weight`: expected [176, 64], found none"));
    assert_eq!(config.build(&dir, Device::Cpu, Precision::Fp32).err().unwrap().code(), code::MODEL_MISMATCH);

    let narrow = changed("llama-lora", |config, _| config["intermediate_size"] = json!(128));
    let (dir, config) = open(narrow.path(), &HeadOptions::default()).unwrap();
    let error = config.check(&dir).unwrap_err();
    assert_eq!(error.message(), "tensor `model.layers.0.mlp.gate_proj.weight`: expected [128, 64], found [176, 64]");
}

#[test]
fn folders_that_lack_something_say_what() {
    let options = HeadOptions::default();
    let refused = |folder: &std::path::Path| open(folder, &options).map(|_| ()).unwrap_err();
    let empty = tempfile::tempdir().unwrap();
    let error = refused(&empty.path().join("nowhere"));
    assert_eq!((error.code(), error.hint_text().is_some()), (code::MODEL_MISSING, true));
    assert!(refused(empty.path()).message().contains("config.json"));
    std::fs::write(empty.path().join("config.json"), "{\"model_type\": \"bret\"}").unwrap();
    let error = refused(empty.path());
    assert_eq!(error.code(), code::MODEL_MISSING);
    assert!(error.message().contains("model.safetensors"));

    let dir = ModelDir::config_only(empty.path()).unwrap();
    let error = configure(&dir, &options).unwrap_err();
    assert_eq!((error.code(), error.hint_text()), (code::MODEL_CONFIG, Some("did you mean `bert`?")));

    let torn = changed("llama-lora", |_, _| {});
    let shard = torn.path().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 4]).unwrap();
    assert_eq!(refused(torn.path()).code(), code::SAFETENSORS);
    std::fs::remove_file(&shard).unwrap();
    let error = refused(torn.path());
    assert_eq!(error.code(), code::MODEL_MISSING);
    assert!(error.message().contains("model-00002-of-00002.safetensors"));
}

#[test]
fn bfloat16_is_near_float32_and_stays_frozen() {
    let batch = crate::support::batch(&[9, 4]);
    let (wide, narrow) = (model("llama-lora", None, Precision::Fp32), model("llama-lora", None, Precision::Bf16));
    let (a, b) = (run(&wide, &batch.padded, &[]), run(&narrow, &batch.padded, &[]));
    assert_eq!(b.kind(), Kind::BFloat16);
    let (a, b) = (real(&batch.padded.0, &a), real(&batch.padded.0, &b.to_kind(Kind::Float)));
    let off = distance(&a, &b);
    assert!(off > 0.0 && off < 0.05, "off by {off}");
    let groups = [pleach_nn::Group { rows: 0..2, hooks: &NoHooks }];
    assert_eq!(distance(&run(&wide, &batch.padded, &groups), &run(&wide, &batch.padded, &[])), 0.0);
}
