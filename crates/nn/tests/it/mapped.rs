//! Weights that are their file.

use pleach_nn::{HeadKind, HeadOptions, ModelDir, OutTensor, Precision, Role, TensorFile, configure, write_tensors};
use tch::{Device, Kind, Tensor};

/// Addresses of a file in this process.
fn mappings(path: &std::path::Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count()
}

/// In float32 a large weight lies in its file, lives as long as the model, and cannot reach the file; in bfloat16 it is
/// another tensor.
#[test]
fn large_weights_are_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let family = pleach_nn::families().iter().find(|known| known.name() == "llama").unwrap();
    pleach_nn::write_tiny(*family, Some(HeadKind::CausalLm), folder.path(), 7).unwrap();
    // A vocabulary that makes the table large enough.
    let config = folder.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["vocab_size"] = serde_json::json!(4096);
    std::fs::write(&config, json.to_string()).unwrap();
    let path = folder.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let width = json["hidden_size"].as_i64().unwrap();
    let table = Tensor::arange(4096 * width, (Kind::Float, Device::Cpu)).reshape([4096, width]);
    let tensors = file.names().map(|name| match name {
        "model.embed_tokens.weight" | "lm_head.weight" => (name.to_owned(), OutTensor::of(&table)),
        _ => (name.to_owned(), OutTensor::raw(&file.get(name).unwrap())),
    });
    let path = folder.path().join("large.safetensors");
    write_tensors(&path, tensors.collect()).unwrap();
    drop(file);
    std::fs::rename(&path, folder.path().join("model.safetensors")).unwrap();
    let path = folder.path().join("model.safetensors").canonicalize().unwrap();
    for (precision, mapped) in [(Precision::Fp32, true), (Precision::Bf16, false)] {
        let dir = ModelDir::open(folder.path()).unwrap();
        let config = configure(&dir, &HeadOptions::default()).unwrap();
        let backbone = config.build(&dir, Device::Cpu, precision).unwrap();
        drop(dir);
        assert_eq!(mappings(&path) > 0, mapped, "{precision:?}");
        let site = config.sites().iter().find(|site| site.role == Role::Embed).unwrap();
        let mut weight = backbone.weights(site.id).unwrap().weight.shallow_clone();
        assert!(weight.equal(&table.to_kind(precision.kind())), "{precision:?}");
        drop(backbone);
        assert_eq!(mappings(&path) > 0, mapped, "{precision:?}: a tensor is left");
        let before = std::fs::read(&path).unwrap();
        let _ = weight.zero_();
        assert!(std::fs::read(&path).unwrap() == before, "{precision:?}: a write reached the file");
        drop(weight);
        assert_eq!(mappings(&path), 0, "{precision:?}: nothing is left");
    }
}
