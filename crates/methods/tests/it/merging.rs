//! Merged, exported, imported and compared folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pleach_base::code;
use pleach_methods::files::{self, State};
use pleach_nn::{Backbone, HeadOptions, ModelDir, OutTensor, Precision, TensorFile, open, write_tensors};
use rstest::rstest;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::malformed::copy;
use crate::support::{Batch, assert_near, case, distance, tensors};

const NAMES: [&str; 3] = ["llama-lora", "llama-lora-qv-rslora", "bert-lora"];

fn backbone(dir: &Path) -> Box<dyn Backbone> {
    tch::set_num_threads(1);
    let (dir, config) = open(dir, &HeadOptions::default()).unwrap();
    config.build(&dir, Device::Cpu, Precision::Fp32).unwrap()
}

/// Logits at real tokens of the recorded batch, with no adapter.
fn logits(model: &dyn Backbone, io: &BTreeMap<String, Tensor>) -> Tensor {
    let batch = Batch::padded(&io["eval.input_ids"], &io["eval.attention_mask"]);
    let cx = pleach_nn::Forward::eval(model.config().sites(), &batch.layout, &[]);
    batch.real(model.forward(&cx, &batch.inputs).tensor())
}

fn recorded(io: &BTreeMap<String, Tensor>, name: &str) -> Tensor {
    Batch::padded(&io["eval.input_ids"], &io["eval.attention_mask"]).real(&io[name])
}

fn merged(name: &str, kind: Option<Kind>) -> (tempfile::TempDir, files::Written, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let opened = files::open(&case(name).join("adapter"), &case(name).join("model")).unwrap();
    let to = folder.path().join("merged");
    let written = files::merge(&opened, &to, kind).unwrap();
    (folder, written, to)
}

#[rstest]
fn a_merged_folder_gives_the_adapted_logits(#[values(0, 1, 2)] which: usize) {
    let name = NAMES[which];
    let io = tensors(&case(name).join("io.safetensors"));
    let (_keep, written, to) = merged(name, None);
    assert!(written.sites > 0 && written.untied.is_empty());
    let found = logits(backbone(&to).as_ref(), &io);
    assert_near(&found, &recorded(&io, "eval.adapted_logits"), 1e-4);
    assert!(distance(&found, &recorded(&io, "eval.base_logits")) > 1e-2, "the adapter does something");
    // Names, shapes and kinds are the base's.
    let (ours, base) = (ModelDir::open(&to).unwrap(), ModelDir::open(&case(name).join("model")).unwrap());
    assert_eq!(ours.names().collect::<Vec<_>>(), base.names().collect::<Vec<_>>());
    for name in base.names() {
        let (a, b) = (ours.get(name).unwrap(), base.get(name).unwrap());
        assert_eq!((a.dtype, a.shape), (b.dtype, b.shape), "{name}");
    }
}

/// Sums and scalings.
#[rstest]
fn what_was_merged_can_be_taken_out_again(#[values("llama-lora", "llama-lora-qv-rslora", "ia3-llama")] name: &str) {
    let (keep, _, to) = merged(name, None);
    let opened = files::open_on(&case(name).join("adapter"), &to, None).unwrap();
    let back = keep.path().join("base");
    files::unmerge(&opened, &back, None).unwrap();
    let diff = files::diff(&back, &case(name).join("model"), 1e-6).unwrap();
    assert!(diff.tensors.iter().all(|row| row.state == State::Same), "{:?}", diff.tensors);
    let moved = files::diff(&to, &back, 1e-6).unwrap();
    assert!(moved.tensors.iter().any(|row| row.state == State::Changed));
}

/// A step says which model it was trained on: with the adapter folded in, that is another one.
#[test]
fn what_was_merged_is_not_merged_again() {
    let (keep, _, merged) = merged("llama-lora", None);
    let (adapter, base) = (copy("llama-lora"), case("llama-lora").join("model"));
    let manifest = json!({"meta": {"base_fingerprint": ModelDir::open(&base).unwrap().fingerprint().unwrap()}});
    std::fs::write(adapter.path().join("manifest.json"), manifest.to_string()).unwrap();
    files::merge(&files::open(adapter.path(), &base).unwrap(), &keep.path().join("once"), None).unwrap();
    let error = files::open(adapter.path(), &merged).unwrap_err();
    assert_eq!(error.code(), code::ADAPTER_BASE, "{error:?}");
    assert!(error.hint_text().unwrap().contains("the model that the adapter was trained on"), "{error:?}");
}

#[test]
fn what_is_neither_a_sum_nor_a_scaling_stays_in() {
    let (keep, _, to) = merged("boft-butterfly", None);
    let opened = files::open_on(&case("boft-butterfly").join("adapter"), &to, None).unwrap();
    let error = files::unmerge(&opened, &keep.path().join("base"), None).unwrap_err();
    assert!(error.code() == code::METHOD_CONFIG && error.message().starts_with("boft at `"), "{error}");
}

#[test]
fn a_module_that_was_trained_whole_cannot_be_unmerged() {
    let (keep, _, to) = merged("bert-lora", None);
    let opened = files::open_on(&case("bert-lora").join("adapter"), &to, None).unwrap();
    let error = files::unmerge(&opened, &keep.path().join("base"), None).unwrap_err();
    assert!(error.code() == code::METHOD_CONFIG && error.message().contains("`classifier`"), "{error}");
}

#[test]
fn the_element_kind_is_the_bases_or_the_one_asked_for() {
    let (_keep, _, to) = merged("llama-lora", Some(Kind::BFloat16));
    let dir = ModelDir::open(&to).unwrap();
    assert!(dir.names().all(|name| dir.get(name).unwrap().dtype == pleach_nn::Dtype::BF16));
    assert_eq!(dir.config()["dtype"], "bfloat16");
    let io = tensors(&case("llama-lora").join("io.safetensors"));
    assert_near(&logits(backbone(&to).as_ref(), &io), &recorded(&io, "eval.adapted_logits"), 0.1);
}

#[test]
fn a_bfloat16_base_stays_one() {
    let model = base("llama-lora", 1, |tensors, _| tensors.values_mut().for_each(|t| *t = t.to_kind(Kind::BFloat16)));
    let to = tempfile::tempdir().unwrap();
    let opened = files::open(&case("llama-lora").join("adapter"), model.path()).unwrap();
    files::merge(&opened, to.path(), None).unwrap();
    let dir = ModelDir::open(to.path()).unwrap();
    assert!(dir.names().all(|name| dir.get(name).unwrap().dtype == pleach_nn::Dtype::BF16));
}

/// A model folder like that of a recorded case, with its tensors and configuration changed, in `shards` files.
fn base(
    name: &str,
    shards: usize,
    edit: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut Map<String, Value>),
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut all = tensors(&case(name).join("model/model.safetensors"));
    let text = std::fs::read(case(name).join("model/config.json")).unwrap();
    let mut config = serde_json::from_slice(&text).unwrap();
    edit(&mut all, &mut config);
    std::fs::write(folder.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::write(folder.path().join("1_Pooling/config.json"), "{}").unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), "old").unwrap();
    let mut index = Map::new();
    for shard in 0..shards {
        let file = if shards == 1 { "model.safetensors".to_owned() } else { format!("model-{shard}.safetensors") };
        let part = all.iter().enumerate().filter(|(i, _)| i % shards == shard);
        let part: BTreeMap<_, _> = part.map(|(_, (name, t))| (name.clone(), OutTensor::of(t))).collect();
        index.extend(part.keys().map(|name| (name.clone(), json!(file))));
        write_tensors(&folder.path().join(file), part).unwrap();
    }
    if shards > 1 {
        let text = json!({"metadata": {}, "weight_map": index}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    }
    folder
}

#[test]
fn shards_stay_where_they_are_and_companions_come_along() {
    let name = "llama-lora";
    let model = base(name, 3, |_, _| {});
    let to = tempfile::tempdir().unwrap();
    let opened = files::open(&case(name).join("adapter"), model.path()).unwrap();
    let written = files::merge(&opened, to.path(), None).unwrap();
    let names: Vec<_> = written.weights.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["model-0.safetensors", "model-1.safetensors", "model-2.safetensors"]);
    assert_eq!(written.copied, ["1_Pooling/config.json", "tokenizer_config.json"], "no old weights");
    for file in names {
        let list =
            |dir: &Path| TensorFile::open(&dir.join(file)).unwrap().names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(list(to.path()), list(model.path()), "{file}");
    }
    let index: Value =
        serde_json::from_slice(&std::fs::read(to.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert!(index["metadata"]["total_size"].as_u64().unwrap() > 0);
    let io = tensors(&case(name).join("io.safetensors"));
    assert_near(&logits(backbone(to.path()).as_ref(), &io), &recorded(&io, "eval.adapted_logits"), 1e-4);
    let again = files::merge(&opened, to.path(), None).unwrap_err();
    assert_eq!(again.code(), code::BAD_VALUE, "nothing is overwritten");
}

/// The head shares the token table in the base; an adapter on the head alone must leave the table alone.
#[test]
fn a_shared_tensor_is_split_when_only_one_of_its_users_changes() {
    let name = "llama-lora";
    let model = base(name, 1, |tensors, config| {
        drop(tensors.remove("lm_head.weight").unwrap());
        config.insert("tie_word_embeddings".into(), json!(true));
    });
    let adapter = copy(name);
    let (vocab, hidden) = {
        let table = &tensors(&model.path().join("model.safetensors"))["model.embed_tokens.weight"];
        (table.size()[0], table.size()[1])
    };
    let draw =
        |shape: [i64; 2]| (Tensor::arange(shape[0] * shape[1], (Kind::Float, Device::Cpu)).sin() * 0.3).view(shape);
    let parts = [("lora_A", draw([4, hidden])), ("lora_B", draw([vocab, 4]))];
    let parts = parts.map(|(part, value)| (format!("base_model.model.lm_head.{part}.weight"), value));
    let out = parts.iter().map(|(name, value)| (name.clone(), OutTensor::of(value))).collect();
    write_tensors(&adapter.path().join("adapter_model.safetensors"), out).unwrap();
    let path = adapter.path().join("adapter_config.json");
    let mut map: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in [
        ("r", json!(4)),
        ("target_modules", json!(["lm_head"])),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
    ] {
        map[key] = value;
    }
    std::fs::write(&path, map.to_string()).unwrap();

    let to = tempfile::tempdir().unwrap();
    let opened = files::open(adapter.path(), model.path()).unwrap();
    let written = files::merge(&opened, to.path(), None).unwrap();
    assert_eq!(written.untied, ["lm_head"]);
    let merged = ModelDir::open(to.path()).unwrap();
    assert_eq!(merged.config()["tie_word_embeddings"], false);
    let same = |a: &ModelDir, b: &ModelDir, name: &str| a.get(name).unwrap().bytes == b.get(name).unwrap().bytes;
    assert!(same(&merged, &opened.dir, "model.embed_tokens.weight"), "the table is as it was");

    let io = tensors(&case(name).join("io.safetensors"));
    let batch = Batch::padded(&io["eval.input_ids"], &io["eval.attention_mask"]);
    let groups = crate::support::all(&batch, &opened.adapter);
    let cx = pleach_nn::Forward::eval(opened.backbone.config().sites(), &batch.layout, &groups);
    let adapted = batch.real(opened.backbone.forward(&cx, &batch.inputs).tensor());
    assert_near(&logits(backbone(to.path()).as_ref(), &io), &adapted, 1e-5);
    assert!(distance(&logits(opened.backbone.as_ref(), &io), &adapted) > 1e-2);
}

/// A bare model gets a new head by training; the merged folder is of the class with the head.
#[test]
fn a_bare_base_becomes_the_class_with_the_head() {
    let name = "bert-lora";
    let model = base(name, 1, |tensors, config| {
        tensors.retain(|name, _| name.starts_with("bert."));
        *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (name["bert.".len()..].to_owned(), t)).collect();
        config.insert("architectures".into(), json!(["BertModel"]));
        config.shift_remove("id2label");
        config.shift_remove("label2id");
    });
    let to = tempfile::tempdir().unwrap();
    let opened = files::open(&case(name).join("adapter"), model.path()).unwrap();
    let written = files::merge(&opened, to.path(), None).unwrap();
    assert_eq!(written.class, "BertForSequenceClassification");
    let io = tensors(&case(name).join("io.safetensors"));
    assert_near(&logits(backbone(to.path()).as_ref(), &io), &recorded(&io, "eval.adapted_logits"), 1e-4);
    let (ours, whole) = (ModelDir::open(to.path()).unwrap(), ModelDir::open(&case(name).join("model")).unwrap());
    assert!(
        ours.names().all(|name| name == "classifier.weight" || name == "classifier.bias" || name.starts_with("bert."))
    );
    assert_eq!(ours.names().count(), whole.names().count());
}

#[test]
fn an_imported_folder_is_the_same_adapter_with_all_fields() {
    for name in NAMES {
        let to = tempfile::tempdir().unwrap();
        let from = case(name).join("adapter");
        let opened = files::open(&from, &case(name).join("model")).unwrap();
        files::write_adapter(&opened, to.path(), "../model").unwrap();
        let diff = files::diff(&from, to.path(), 0.0).unwrap();
        assert!(diff.same, "{name}: {:?} {:?}", diff.config, diff.tensors);
    }
}

#[test]
fn what_is_exported_passed_its_gate() {
    let (from, to) = (copy("llama-lora"), tempfile::tempdir().unwrap());
    files::copy_adapter(from.path(), &to.path().join("a"), Some("org/model"), false).unwrap();
    let exported = files::diff(from.path(), &to.path().join("a"), 0.0).unwrap();
    assert_eq!(exported.config.keys().collect::<Vec<_>>(), ["base_model_name_or_path"]);
    let manifest = json!({"gate": {"publishable": false, "findings": ["w is all zero"]}});
    std::fs::write(from.path().join("manifest.json"), manifest.to_string()).unwrap();
    let refused = files::copy_adapter(from.path(), &to.path().join("b"), None, false).unwrap_err();
    assert_eq!(refused.code(), code::ADAPTER_GATE);
    assert!(!to.path().join("b").exists(), "nothing is left of what was refused");
    let model = case("llama-lora").join("model");
    assert_eq!(files::open_checked(from.path(), &model, false).unwrap_err().code(), code::ADAPTER_GATE);
    files::open_checked(from.path(), &model, true).unwrap();
    files::copy_adapter(from.path(), &to.path().join("b"), None, true).unwrap();
}

#[test]
fn a_difference_is_measured() {
    let (a, b) = (copy("llama-lora"), copy("llama-lora"));
    assert!(files::diff(a.path(), b.path(), 0.0).unwrap().same);
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    crate::malformed::tensors(b.path(), |tensors| {
        let changed = &tensors[name] * -2.0;
        tensors.insert(name.into(), changed);
        let gone = tensors.remove(&name.replace("lora_A", "lora_B")).unwrap();
        tensors.insert("new".into(), gone.narrow(0, 0, 1));
    });
    let diff = files::diff(a.path(), b.path(), 0.0).unwrap();
    let row = |name: &str| diff.tensors.iter().find(|row| row.name == name).unwrap();
    let (changed, norm) = (row(name), row(name).norm_a.unwrap());
    assert_eq!(changed.state, State::Changed);
    assert!(
        (changed.cosine.unwrap() + 1.0).abs() < 1e-12 && (changed.distance.unwrap() - 3.0 * norm).abs() < 1e-6 * norm
    );
    assert!((changed.norm_b.unwrap() - 2.0 * norm).abs() < 1e-6 * norm && diff.distance == changed.distance);
    assert_eq!((row(&name.replace("lora_A", "lora_B")).state, row("new").state), (State::OnlyA, State::OnlyB));
    let wide = files::diff(a.path(), b.path(), 1e3).unwrap();
    assert!(!wide.same && wide.tensors.iter().filter(|row| row.state == State::Changed).count() == 0);
    let nowhere = files::diff(a.path(), &a.path().join("none"), 0.0).unwrap_err();
    assert_eq!(nowhere.code(), code::ADAPTER_FORMAT);
}
