//! Counts, and what options mean.

use pleach_nn::{HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;

fn model(fields: Value) -> Box<dyn BackboneConfig> {
    let Value::Object(fields) = fields else { panic!("a configuration is an object") };
    configure(&ModelDir::of_config(fields), &HeadOptions::default()).unwrap()
}

fn mistral() -> Box<dyn BackboneConfig> {
    model(json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000,
                 "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "max_position_embeddings": 32768}))
}

#[test]
fn the_counts_of_the_paper() {
    let plan = Config::default().plan(mistral().as_ref()).unwrap();
    assert_eq!(plan.params(), 537_001_984);
    assert_eq!(plan.sites.len(), 64, "a target and the place before its block in each");
    // A generated adapter: 32 pairs of rank 128.
    assert_eq!(32 * 128 * (4096 + 4096), 33_554_432);
    #[cfg(feature = "torch")]
    assert!((Config::default().scale() - 0.0625).abs() < 1e-12);
}

#[test]
fn only_decoders_read_segments_in_order() {
    let bert = model(json!({"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 8,
                            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                            "max_position_embeddings": 64, "type_vocab_size": 2}));
    let error = Config { window: 16, ..Config::default() }.plan(bert.as_ref()).unwrap_err();
    assert!(error.message().starts_with("method: BertModel"), "{error}");
    let error = Config { window: 40_000, ..Config::default() }.plan(mistral().as_ref()).unwrap_err();
    assert!(error.message().starts_with("window: 40000"), "{error}");
}
