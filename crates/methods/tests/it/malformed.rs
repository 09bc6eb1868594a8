//! Adapter folders that are not what they say, one fault each: refused with a stable code and the name of what is wrong.

use std::collections::BTreeSet;
use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Code, code, mutate};
use pleach_methods::{files, fuzz_adapter_config};
use pleach_nn::{HeadOptions, ModelDir, OutTensor, TensorFile, configure, tensor_from_entry, write_tensors};
use rstest::rstest;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::case;

const CASE: &str = "llama-lora-qv-rslora";
const B: &str = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

type Tensors = std::collections::BTreeMap<String, Tensor>;

/// A copy of the recorded adapter.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(case(name).join("adapter").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Rewrites the tensors.
pub(crate) fn tensors(folder: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = folder.join("adapter_model.safetensors");
    let mut all = crate::support::tensors(&path);
    edit(&mut all);
    write_tensors(&path, all.iter().map(|(name, tensor)| (name.clone(), OutTensor::of(tensor))).collect()).unwrap();
}

/// Rewrites the text of the file's header; its length follows unless `lie` says another one.
fn header(folder: &Path, lie: Option<u64>, edit: impl FnOnce(String) -> String) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = edit(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let mut new = lie.unwrap_or(text.len() as u64).to_le_bytes().to_vec();
    new.extend(text.bytes());
    new.extend(&bytes[8 + length..]);
    std::fs::write(&path, new).unwrap();
}

/// Sets what the header says of tensor `B`.
fn entry(folder: &Path, field: &str, value: Value) {
    header(folder, None, |text| {
        let mut map: Value = serde_json::from_str(&text).unwrap();
        map[B][field] = value;
        map.to_string()
    });
}

fn offsets(folder: &Path) -> (u64, u64) {
    let mut found = (0, 0);
    header(folder, None, |text| {
        let map: Value = serde_json::from_str(&text).unwrap();
        found = (map[B]["data_offsets"][0].as_u64().unwrap(), map[B]["data_offsets"][1].as_u64().unwrap());
        text
    });
    found
}

fn config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut map: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    map[key] = value;
    std::fs::write(path, map.to_string()).unwrap();
}

fn cut(folder: &Path, file: &str, keep: impl FnOnce(usize) -> usize) {
    let path = folder.join(file);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..keep(bytes.len())]).unwrap();
}

const FILE: &str = "adapter_model.safetensors";

#[rstest]
#[case::missing_key(code::ADAPTER_FORMAT, &[FILE, B, "missing"], |f: &Path| tensors(f, |t| drop(t.remove(B))))]
#[case::wrong_shape(code::ADAPTER_FORMAT, &[FILE, B, "[32, 8]", "[8, 32]"], |f: &Path| tensors(f, |t| drop(t.insert(B.into(), t[B].tr().contiguous()))))]
#[case::one_axis_more(code::ADAPTER_FORMAT, &[FILE, B], |f: &Path| tensors(f, |t| drop(t.insert(B.into(), t[B].unsqueeze(0)))))]
#[case::extra_key(code::ADAPTER_FORMAT, &[FILE, "`junk`"], |f: &Path| tensors(f, |t| drop(t.insert("junk".into(), t[B].copy()))))]
#[case::another_layer(code::ADAPTER_FORMAT, &[FILE, "layers.9"], |f: &Path| tensors(f, |t| {
    let value = t[B].copy();
    t.insert(B.replace("layers.1", "layers.9"), value);
}))]
#[case::not_a_number(code::ADAPTER_FORMAT, &[FILE, A, "not finite"], |f: &Path| tensors(f, |t| drop(t[A].get(0).get(3).fill_(f64::NAN))))]
#[case::infinite(code::ADAPTER_FORMAT, &[FILE, A, "not finite"], |f: &Path| tensors(f, |t| drop(t[A].get(1).fill_(f64::INFINITY))))]
#[case::odd_elements(code::SAFETENSORS, &[FILE, B], |f: &Path| entry(f, "dtype", json!("F8_E4M3")))]
#[case::unknown_elements(code::SAFETENSORS, &[FILE, B, "F33"], |f: &Path| entry(f, "dtype", json!("F33")))]
#[case::cut_by_one(code::SAFETENSORS, &[FILE], |f: &Path| cut(f, FILE, |n| n - 1))]
#[case::cut_in_half(code::SAFETENSORS, &[FILE], |f: &Path| cut(f, FILE, |n| n / 2))]
#[case::cut_in_the_header(code::SAFETENSORS, &[FILE, "header"], |f: &Path| cut(f, FILE, |_| 40))]
#[case::cut_in_the_length(code::SAFETENSORS, &[FILE, "header"], |f: &Path| cut(f, FILE, |_| 5))]
#[case::nothing_left(code::SAFETENSORS, &[FILE], |f: &Path| cut(f, FILE, |_| 0))]
#[case::header_too_long(code::SAFETENSORS, &[FILE, "header"], |f: &Path| header(f, Some(1 << 40), |t| t))]
#[case::header_longest(code::SAFETENSORS, &[FILE, "header"], |f: &Path| header(f, Some(u64::MAX), |t| t))]
#[case::header_too_short(code::SAFETENSORS, &[FILE, "header"], |f: &Path| header(f, Some(16), |t| t))]
#[case::header_no_object(code::SAFETENSORS, &[FILE, "header"], |f: &Path| header(f, None, |t| format!("[{t}]")))]
#[case::twins(code::SAFETENSORS, &[FILE, "`x`: listed twice"], |f: &Path| header(f, None, |t| {
    let twin = r#""x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    format!("{{{twin},{twin},{}", &t[1..])
}))]
#[case::overlap(code::SAFETENSORS, &[FILE, "overlaps"], |f: &Path| {
    let (start, end) = offsets(f);
    entry(f, "data_offsets", json!([start - 4, end - 4]));
})]
#[case::gap(code::SAFETENSORS, &[FILE, "gap"], |f: &Path| {
    let (start, end) = offsets(f);
    // Half of the elements: what is left out is a gap before the next tensor, or bytes at the end that belong to none.
    header(f, None, |text| {
        let mut map: Value = serde_json::from_str(&text).unwrap();
        map[B]["data_offsets"] = json!([start + (end - start) / 2, end]);
        map[B]["shape"] = json!([16, 8]);
        map.to_string()
    });
})]
#[case::beyond_the_end(code::SAFETENSORS, &[FILE, B, "not within"], |f: &Path| entry(f, "data_offsets", json!([0, 1u64 << 50])))]
#[case::backwards(code::SAFETENSORS, &[FILE, B], |f: &Path| entry(f, "data_offsets", json!([8, 4])))]
#[case::negative(code::SAFETENSORS, &[FILE, B], |f: &Path| entry(f, "shape", json!([-32, 8])))]
#[case::overflow(code::SAFETENSORS, &[FILE, B, "too large"], |f: &Path| entry(f, "shape", json!([1u64 << 40, 1u64 << 40])))]
#[case::shape_of_others(code::SAFETENSORS, &[FILE, B, "do not hold"], |f: &Path| entry(f, "shape", json!([64, 8])))]
#[case::no_tensors(code::ADAPTER_FORMAT, &["adapter_model.safetensors: no such file"], |f: &Path| std::fs::remove_file(f.join(FILE)).unwrap())]
#[case::no_options(code::ADAPTER_FORMAT, &["adapter_config.json"], |f: &Path| std::fs::remove_file(f.join("adapter_config.json")).unwrap())]
#[case::cut_options(code::ADAPTER_FORMAT, &["adapter_config.json"], |f: &Path| cut(f, "adapter_config.json", |n| n / 2))]
#[case::list_of_options(code::ADAPTER_FORMAT, &["adapter_config.json"], |f: &Path| std::fs::write(f.join("adapter_config.json"), "[]").unwrap())]
#[case::no_text(code::ADAPTER_FORMAT, &["adapter_config.json"], |f: &Path| std::fs::write(f.join("adapter_config.json"), [0xff, 0xfe]).unwrap())]
#[case::unknown_type(code::ADAPTER_FORMAT, &["adapter_config.json", "peft_type `LORE`"], |f: &Path| config(f, "peft_type", json!("LORE")))]
#[case::type_is_a_number(code::ADAPTER_FORMAT, &["adapter_config.json", "peft_type"], |f: &Path| config(f, "peft_type", json!(3)))]
#[case::unknown_task(code::ADAPTER_FORMAT, &["adapter_config.json", "task_type `JUGGLING`"], |f: &Path| config(f, "task_type", json!("JUGGLING")))]
#[case::unknown_option(code::UNKNOWN_KEY, &["adapter_config.json", "surprise"], |f: &Path| config(f, "surprise", json!(1)))]
#[case::rank_is_text(code::METHOD_CONFIG, &["adapter_config.json.r"], |f: &Path| config(f, "r", json!("eight")))]
#[case::rank_is_none(code::METHOD_CONFIG, &["adapter_config.json.r"], |f: &Path| config(f, "r", json!(0)))]
#[case::other_rank(code::ADAPTER_FORMAT, &[FILE, "lora_A"], |f: &Path| config(f, "r", json!(5)))]
#[case::no_such_module(code::TARGET_NOTHING, &["k_prog"], |f: &Path| config(f, "target_modules", json!(["k_prog"])))]
#[case::other_fingerprint(code::ADAPTER_BASE, &["fingerprint 0000"], |f: &Path| {
    let manifest = json!({"gate": {"publishable": true}, "meta": {"base_fingerprint": "0".repeat(64)}});
    std::fs::write(f.join("manifest.json"), manifest.to_string()).unwrap();
})]
#[case::no_manifest(code::ADAPTER_FORMAT, &["manifest.json"], |f: &Path| std::fs::write(f.join("manifest.json"), "{").unwrap())]
#[case::other_frozen_weight(code::ADAPTER_BASE, &["q_proj.base_layer.weight"], |f: &Path| tensors(f, |t| {
    let name = A.replace("lora_A.weight", "base_layer.weight");
    t.insert(name, Tensor::zeros([64, 64], (Kind::Float, tch::Device::Cpu)));
}))]
fn a_fault_is_refused_by_name(#[case] code: Code, #[case] parts: &[&str], #[case] damage: fn(&Path)) {
    let folder = copy(CASE);
    files::open(folder.path(), &case(CASE).join("model")).unwrap();
    damage(folder.path());
    let error = files::open(folder.path(), &case(CASE).join("model")).map(drop).unwrap_err();
    assert_eq!(error.code(), code, "{}", error.chain());
    for part in parts {
        assert!(error.chain().contains(part), "{} does not say `{part}`", error.chain());
    }
    assert!(
        error.chain().contains(folder.path().to_str().unwrap()) || code == code::TARGET_NOTHING,
        "{}",
        error.chain()
    );
}

/// Damaged copies of real configurations: refused with a code of bad input, or planned without a panic.
#[test]
fn the_corpus_of_damaged_configurations_breaks_nothing() {
    let cases = ["llama-lora", CASE, "bert-lora"];
    let seeds: Vec<_> =
        cases.map(|name| std::fs::read(case(name).join("adapter/adapter_config.json")).unwrap()).into_iter().collect();
    let dir = ModelDir::open(&case(CASE).join("model")).unwrap();
    let model = configure(&dir, &HeadOptions::default()).unwrap();
    let (mut accepted, mut codes) = (0, BTreeSet::new());
    for bytes in mutate::damaged(&seeds, Key::seed(12), 4_000) {
        match fuzz_adapter_config(&bytes) {
            Ok(config) => {
                accepted += 1;
                let _ = config.plan(model.as_ref()).map(|plan| plan.params());
            }
            Err(error) => drop(codes.insert(error.code().id)),
        }
    }
    assert!(accepted > 100, "{accepted}");
    let wanted = [code::UNKNOWN_KEY, code::METHOD_CONFIG, code::ADAPTER_FORMAT].map(|code| code.id);
    assert_eq!(codes, wanted.into_iter().collect::<BTreeSet<_>>());
}

/// What is accepted of damaged tensor files is what the adapter needs, with finite values.
#[test]
fn the_corpus_of_damaged_tensor_files_breaks_nothing() {
    let seeds = vec![std::fs::read(case(CASE).join("adapter").join(FILE)).unwrap()];
    let folder = copy(CASE);
    for bytes in mutate::damaged(&seeds, Key::seed(13), 400) {
        std::fs::write(folder.path().join(FILE), bytes).unwrap();
        let Ok(file) = TensorFile::open(&folder.path().join(FILE)) else { continue };
        for name in file.names() {
            let _ = tensor_from_entry(&file.get(name).unwrap());
        }
    }
}
