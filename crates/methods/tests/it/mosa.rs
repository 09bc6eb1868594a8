//! MoSA around every adapter that has projections: where it begins, what a file of it is.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{AdapterConfig, MethodKind, find};
use pleach_nn::families;
use serde_json::{Value, json};

use crate::support::{all, distance, fresh, parse};
use crate::zoo::backbone;

fn split(mosa: &Value, (method, options): (&str, Value)) -> Arc<dyn AdapterConfig> {
    let around = find(MethodKind::Strategy, "mosa").unwrap().around(mosa.as_object().unwrap(), "s").unwrap().unwrap();
    let adapter = find(MethodKind::Adapter, method).unwrap().parse(options.as_object().unwrap(), "a").unwrap();
    around.wrap(adapter).unwrap().into()
}

fn adapters() -> Vec<(&'static str, Value)> {
    vec![
        ("visual_adapter", json!({"bottleneck_size": 6})),
        ("visual_adapter", json!({"bottleneck_size": 6, "style": "pfeiffer"})),
        ("visual_adapter", json!({"bottleneck_size": 6, "style": "houlsby"})),
        ("bottleneck", json!({"preset": "double_seq_bn", "init_weights": "mam_adapter"})),
        ("lora", json!({"r": 4})),
    ]
}

/// Every expert begins as the plain adapter does, and with it the whole; in training too, whatever is drawn.
#[test]
fn it_begins_as_the_plain_adapter_does() {
    for name in ["vit", "llama", "bert"] {
        let model = backbone(*families().iter().find(|family| family.name() == name).unwrap());
        let batch = model.batch(&[6, 4, 5], Some(7));
        let base = model.run(&batch, &[]);
        for (method, options) in adapters() {
            let plain = fresh(&model, &parse(method, &options), Key::seed(3));
            for share in ["down", "up", "none"] {
                let config = split(&json!({"share": share, "expert_num": 3}), (method, options.clone()));
                let adapter = fresh(&model, &config, Key::seed(3));
                for step in 0..3 {
                    let off = distance(&model.run_at(&batch, &all(&batch, &adapter), true, step), &base);
                    assert!(off < 1e-5, "{method} on {name}, share {share}: off by {off}");
                }
                for (name, tensor) in adapter.exported().unwrap() {
                    let own = plain.params().get(&name).unwrap();
                    assert!(tensor.equal(own), "{name}");
                    for expert in 0..3 {
                        let expert = adapter.params().get(&format!("{name}.expert_{expert}"));
                        assert!(expert.is_none_or(|expert| expert.equal(own)), "{name}");
                    }
                }
            }
        }
    }
}

/// The released setting: 1,208,064 parameters once merged, and three more copies of the up projections before.
#[test]
fn the_counts_of_the_paper() {
    let vit = json!({"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 768, "num_hidden_layers": 12,
                     "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 16});
    let dir = pleach_nn::ModelDir::of_config(vit.as_object().unwrap().clone());
    let model = pleach_nn::configure(&dir, &pleach_nn::HeadOptions::default()).unwrap();
    let plan = split(&json!({}), ("visual_adapter", json!({}))).plan(&*model).unwrap();
    assert_eq!(plan.children[0].params(), 1_208_064);
    assert_eq!(plan.params() - 1_208_064, 12 * 3 * (49_152 + 768));
}
