//! Counts of the paper, and which tensors tasks share.

use pleach_nn::{BackboneConfig, HeadOptions, ModelDir, configure};
use serde_json::{Value, json};

use super::*;
use crate::adapter::Owner;
use crate::registry::find;

fn bart_base() -> Box<dyn BackboneConfig> {
    let config = json!({"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": 768,
                        "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
                        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
                        "vocab_size": 50265, "max_position_embeddings": 1024, "decoder_start_token_id": 2,
                        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2});
    let Value::Object(config) = config else { unreachable!() };
    configure(&ModelDir::of_config(config), &HeadOptions::default()).unwrap()
}

fn wrapped(more: Value, method: &str) -> Result<Box<dyn AdapterConfig>> {
    let mut options = json!({"tasks": [{"name": "vqa", "prompt": "vqa: "}, {"name": "gqa", "prompt": "gqa: "},
                                       {"name": "nlvr", "prompt": "nlvr: "}, {"name": "caption", "prompt": "caption: "}]});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: Config = serde_json::from_value(options).unwrap();
    config.check()?;
    config.wrap(find(MethodKind::Adapter, method)?.parse(&serde_json::Map::new(), "adapter")?)
}

const ADAPTERS: u64 = 30 * (768 * 96 + 96 + 96 * 768 + 768);
const NORMS: u64 = 49_152;

#[test]
fn the_counts_of_the_paper() {
    let model = bart_base();
    let params = |more: Value, method: &str| wrapped(more, method).unwrap().plan(model.as_ref()).unwrap().params();
    assert_eq!(ADAPTERS, 4_449_600);
    assert_eq!(params(json!({"unfreeze_layer_norms": false}), "bottleneck"), ADAPTERS);
    assert_eq!(params(json!({}), "bottleneck"), ADAPTERS + NORMS);
    assert_eq!(params(json!({"sharing": "multiple"}), "bottleneck"), 4 * ADAPTERS + NORMS);
    let (down, up) = (30 * (768 * 96 + 96), 30 * (96 * 768 + 768));
    assert_eq!(params(json!({"sharing": "share_up"}), "bottleneck"), 4 * down + up + NORMS);
    assert_eq!(params(json!({"sharing": "share_down"}), "bottleneck"), down + 4 * up + NORMS);
    let without = 24 * (768 * 96 + 96 + 96 * 768 + 768);
    assert_eq!(params(json!({"add_adapter_cross_attn": false}), "bottleneck"), without + NORMS);
    // n^3 + in out / n + out for each of both maps.
    let products = |n: u64| 30 * (2 * n * n * n + 2 * 768 * 96 / n + 96 + 768);
    assert_eq!(params(json!({}), "compacter"), products(2) + NORMS);
    assert_eq!(params(json!({"phm_dim": 4}), "compacter"), products(4) + NORMS);
}

#[test]
fn generators_are_one_set_a_kind_of_place_and_stack() {
    let (d, r, e, embed, inner, tasks) = (768u64, 96u64, 8u64, 512u64, 128u64, 4u64);
    let map = 6 * embed + inner * 2 * embed + inner + e * inner + e + 2 * e;
    let generator = 2 * r * d * (e + 1) + (r + d) * (e + 1);
    let expected = tasks * embed + 2 * map + (2 + 3) * generator;
    let plan = wrapped(json!({"sharing": "hyper", "unfreeze_layer_norms": false}), "bottleneck").unwrap();
    let plan = plan.plan(bart_base().as_ref()).unwrap();
    assert_eq!(plan.params(), expected);
}

#[test]
fn tensors_have_the_owners_that_sharing_says() {
    let model = bart_base();
    let owned = |sharing: &str, method: &str| {
        let config = wrapped(json!({"sharing": sharing}), method).unwrap();
        let plan = config.plan(model.as_ref()).unwrap();
        let of = |wanted: &str| {
            let own = plan.trained().filter(|tensor| tensor.part.contains(wanted));
            own.filter(|tensor| config.owner(tensor) != Owner::All).count()
        };
        let (down, up) = if method == "lora" { ("lora_A", "lora_B") } else { ("down", "up") };
        (of(down) > 0, of(up) > 0)
    };
    for method in ["bottleneck", "lora", "compacter"] {
        assert_eq!(owned("single", method), (false, false));
        assert_eq!(owned("multiple", method), (true, true));
        assert_eq!(owned("share_up", method), (true, false), "{method}");
        assert_eq!(owned("share_down", method), (false, true), "{method}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |more: Value, method: &str| {
        let planned = wrapped(more, method).and_then(|config| config.plan(bart_base().as_ref()));
        let error = planned.unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG, "{error}");
        error.message().to_owned()
    };
    assert!(refused(json!({"sharing": "hyper"}), "compacter").starts_with("sharing: hyper"));
    assert!(refused(json!({}), "ia3").starts_with("sharing: ia3"));
    assert!(refused(json!({"sharing": "share_up"}), "prompt").starts_with("sharing: share_up"));
    assert!(refused(json!({"reduction_factor": 5}), "bottleneck").contains("5 does not divide 768"));
    assert!(refused(json!({"phm_dim": 5}), "compacter").starts_with("phm_dim: 5 divides not both 768"));
    // 64 divides the width, but not that of the bottleneck, 96.
    assert!(refused(json!({"phm_dim": 64}), "compacter").starts_with("phm_dim: 64 divides not both 768"));
    assert!(wrapped(json!({"phm_dim": 64}), "bottleneck").unwrap().plan(bart_base().as_ref()).is_ok());
}

#[test]
fn tasks_that_nothing_tells_apart_are_noted() {
    let notes = |more: Value| {
        let notes = wrapped(more, "bottleneck").unwrap().plan(bart_base().as_ref()).unwrap().notes;
        notes.into_iter().filter(|note| note.contains("cannot tell them apart")).collect::<Vec<_>>()
    };
    assert!(notes(json!({})).is_empty());
    assert!(notes(json!({"use_tasks_prompts": false}))[0].starts_with("4 tasks"));
    let unprompted = json!({"tasks": [{"name": "a", "prompt": "a: "}, {"name": "b"}, {"name": "c"}]});
    assert!(notes(unprompted)[0].starts_with("2 tasks"));
    assert!(notes(json!({"tasks": [{"name": "a", "prompt": "a: "}, {"name": "b"}]})).is_empty());
    assert!(notes(json!({"use_tasks_prompts": false, "sharing": "multiple"})).is_empty());
}

#[test]
fn rows_name_tasks_that_take_turns() {
    let tasks = wrapped(json!({}), "bottleneck").unwrap().row_tasks().unwrap();
    assert_eq!((tasks.count, tasks.alike, tasks.prompts[3].as_str()), (4, true, "caption: "));
    let multiple = wrapped(json!({"sharing": "multiple"}), "bottleneck").unwrap().row_tasks().unwrap();
    assert!(multiple.prompts.is_empty() && multiple.alike);
}
