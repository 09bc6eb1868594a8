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

/// What would be ignored silently is refused by its name.
#[test]
fn what_is_not_built_is_refused() {
    for (family, field, value) in [
        ("bert", "is_decoder", json!(true)),
        ("roberta", "position_embedding_type", json!("relative_key")),
        ("distilbert", "activation", json!("mish")),
        ("mpnet", "relative_attention_num_buckets", json!(16)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gpt2", "activation_function", json!("mish")),
        ("gpt_neox", "rotary_pct", json!(0.4)),
        ("gemma2", "use_bidirectional_attention", json!(true)),
        ("gemma2", "attn_logit_softcapping", json!(-1.0)),
        ("gemma2", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("gemma2", "layer_types", json!(["full_attention"])),
        ("llama", "rope_scaling", json!({"rope_type": "proportional"})),
        ("llama", "rope_parameters", json!({"full_attention": {"rope_type": "default"}})),
        ("llama", "quantization_config", json!({"quant_method": "gptq"})),
        ("llama", "head_dim", json!(7)),
        ("llama", "hidden_size", json!(33)),
        ("llama", "num_attention_heads", json!(3)),
        ("mistral", "sliding_window", json!("wide")),
        ("mixtral", "output_router_logits", json!(true)),
        ("mixtral", "num_experts_per_tok", json!(5)),
        ("phi3", "rope_scaling", json!({"type": "su", "short_factor": [1.0], "long_factor": [1.0]})),
        ("qwen2", "layer_types", json!(["full_attention", "linear_attention"])),
        ("qwen3", "hidden_act", json!("mish")),
    ] {
        let known = families().iter().find(|known| known.name() == family).unwrap();
        let mut config: Value = serde_json::from_str(known.tiny()).unwrap();
        config[field] = value.clone();
        let error = refuse(&config, None);
        assert_eq!(error.code(), code::MODEL_CONFIG, "{family} {field}");
        let field = match field {
            "rope_scaling" if family == "llama" => "rope_type",
            "rope_scaling" => "rope_parameters.long_factor",
            "rotary_pct" => "partial_rotary_factor",
            other => other,
        };
        assert!(error.message().contains(field), "{family}: {}", error.message());
    }
}

#[test]
fn a_head_that_the_family_lacks_is_refused() {
    let error = refuse(&bert(), Some(HeadKind::CausalLm));
    assert_eq!(error.message(), "family bert has no head for causal language modelling");
}
