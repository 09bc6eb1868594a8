use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn an_index_names_files_of_its_own_folder_only() {
    let index = r#"{"weight_map": {"w": "../elsewhere.safetensors"}}"#;
    let folder = folder(&[("config.json", "{}"), (INDEX, index)]);
    let error = ModelDir::open(folder.path()).unwrap_err();
    assert_eq!(error.code(), code::MODEL_CONFIG);
    assert!(error.message().ends_with("a shard is no file name"), "{error}");
}

#[test]
fn a_header_that_lies_about_lengths_is_refused() {
    let folder = folder(&[("config.json", "{}")]);
    let header = br#"{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 16]);
    std::fs::write(folder.path().join(WEIGHTS), &bytes).unwrap();
    assert_eq!(ModelDir::open(folder.path()).unwrap_err().code(), code::SAFETENSORS);
    std::fs::write(folder.path().join(WEIGHTS), u64::MAX.to_le_bytes()).unwrap();
    assert_eq!(ModelDir::open(folder.path()).unwrap_err().code(), code::SAFETENSORS);
    std::fs::write(folder.path().join(WEIGHTS), b"").unwrap();
    assert!(ModelDir::open(folder.path()).is_err());
}

#[test]
fn a_tensor_that_the_index_promises_must_be_there() {
    let folder =
        folder(&[("config.json", "{}"), (INDEX, r#"{"weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}"#)]);
    let bytes = 1f32.to_le_bytes();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([("w", view)], None, &folder.path().join("a.safetensors")).unwrap();
    let error = ModelDir::open(folder.path()).unwrap_err();
    assert_eq!(error.code(), code::MODEL_MISMATCH);
    assert!(error.message().ends_with("tensor `v` should be in a.safetensors, and is not"), "{error}");
}

#[test]
fn a_configuration_that_is_no_json_says_so() {
    let folder = folder(&[("config.json", "{")]);
    let error = ModelDir::config_only(folder.path()).unwrap_err();
    assert_eq!(error.code(), code::MODEL_CONFIG);
}
