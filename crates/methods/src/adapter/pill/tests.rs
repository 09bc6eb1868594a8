//! Counts, stages, and what cannot be.

use pleach_nn::{HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;

fn model(fields: Value) -> Box<dyn BackboneConfig> {
    let Value::Object(fields) = fields else { panic!("a configuration is an object") };
    configure(&ModelDir::of_config(fields), &HeadOptions::default()).unwrap()
}

fn llama(hidden: usize, layers: usize, heads: usize, inner: usize) -> Box<dyn BackboneConfig> {
    model(json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
                 "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
                 "num_attention_heads": heads, "num_key_value_heads": heads}))
}

fn config(options: Value) -> Config {
    serde_json::from_value(options).unwrap()
}

#[test]
fn the_count_of_the_paper() {
    let plan = Config::default().plan(llama(4096, 32, 32, 11008).as_ref()).unwrap();
    assert_eq!(plan.params(), 45_088_768);
    let align = config(json!({"stage": "align"})).plan(llama(4096, 32, 32, 11008).as_ref()).unwrap();
    assert_eq!(align.params(), 32 * 393_216 + 768 * 4096, "the experts of images and the projection");
    let names = |plan: &Plan| plan.tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan), names(&align), "one stage goes on from the file of the other");
}

#[test]
fn further_kinds_have_experts_gates_and_projections_of_their_own() {
    let small = llama(32, 2, 4, 64);
    let two = config(json!({"down_sample_size": 4, "visual": {"proj_in": 6, "tokens": 2}}));
    let three = Config { modalities: config(json!({"modalities": ["text", "image", "sound"]})).modalities, ..two.clone() };
    let more = three.plan(small.as_ref()).unwrap().params() - two.plan(small.as_ref()).unwrap().params();
    assert_eq!(more, 2 * (3 * 32 * 4 + 4 * 32) + 6 * 32);
    let plain = Config { adapter_activation: Form::Gelu, attn_adapter: false, ..two };
    assert_eq!(plain.plan(small.as_ref()).unwrap().params(), 2 * (2 * 2 * 32 * 4 + 4 * 32) + 6 * 32);
}

#[test]
fn both_stages_are_phases_of_one_training() {
    let both = config(json!({"stage": ["align", "tune"], "align_share": 0.25}));
    assert_eq!(both.phases(20), [5, 15]);
    assert_eq!((both.phases(2), both.phases(1)), (vec![1, 1], vec![1]));
    let plan = both.plan(llama(32, 2, 4, 64).as_ref()).unwrap();
    let moved = |phase| {
        let step = StepInfo { phase, ..StepInfo::new(1, 20, &both.phases(20)) };
        plan.trained().filter(|tensor| both.updates(tensor, step)).count()
    };
    assert_eq!((moved(0), moved(1)), (1 + 2 * 3, 1 + 2 * (3 * 3 + 1)));
}

#[test]
fn tuning_without_an_aligned_projection_is_noted() {
    let notes = |stage: Value| config(json!({"stage": stage})).plan(llama(32, 2, 4, 64).as_ref()).unwrap().notes;
    assert!(notes(json!("tune"))[0].contains("name it with init_from"));
    assert!(notes(json!("align")).is_empty() && notes(json!(["align", "tune"])).is_empty());
}

#[test]
fn blocks_that_make_everything_in_one_map_are_refused() {
    let gpt2 = model(json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 100, "n_embd": 16,
                            "n_layer": 1, "n_head": 2, "n_positions": 32}));
    let error = Config::default().plan(gpt2.as_ref()).unwrap_err();
    assert!(error.message().starts_with("method: block 0 has no map for values alone"), "{error}");
}
