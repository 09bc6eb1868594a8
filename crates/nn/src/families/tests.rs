use serde_json::{Value, json};

use super::*;

fn refuse(config: &Value, kind: Option<HeadKind>) -> pleach_base::Error {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let dir = ModelDir::config_only(folder.path()).unwrap();
    configure(&dir, &HeadOptions { kind, ..HeadOptions::default() }).unwrap_err()
}

fn bert() -> Value {
    json!({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10, "type_vocab_size": 2,
        "max_position_embeddings": 16})
}

#[test]
fn names_are_sorted_and_are_those_of_the_files() {
    let names: Vec<_> = families().iter().map(|family| family.name()).collect();
    assert!(names.is_sorted() && names.contains(&"bert") && names.contains(&"llama"));
}

#[test]
fn a_field_that_is_missing_or_wrong_is_named() {
    let mut config = bert();
    config["hidden_size"] = json!("wide");
    assert_eq!(refuse(&config, None).message(), "config.json: hidden_size must be a positive number, not \"wide\"");
    config["hidden_size"] = json!(9);
    assert!(refuse(&config, None).message().contains("9 is not a multiple of num_attention_heads 2"));
    let mut config = bert();
    config.as_object_mut().unwrap().remove("vocab_size");
    assert_eq!(refuse(&config, None).message(), "config.json: vocab_size is missing");
    let mut config = bert();
    config["hidden_act"] = json!("gelo");
    assert_eq!(refuse(&config, None).hint_text(), Some("did you mean `gelu`?"));
    let mut config = bert();
    config["position_embedding_type"] = json!("relative_key");
    assert_eq!(refuse(&config, None).code(), code::MODEL_CONFIG);
}

#[test]
fn a_head_that_the_family_lacks_is_refused() {
    let error = refuse(&bert(), Some(HeadKind::CausalLm));
    assert_eq!(error.message(), "family bert has no head for causal language modelling");
}
