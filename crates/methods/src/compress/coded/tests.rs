use pleach_nn::{HeadKind, HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;
use crate::card::MethodKind;
use crate::registry::find;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// ViT-B/16 with 8 classes.
fn vit() -> Box<dyn BackboneConfig> {
    let config = json!({"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768,
                        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                        "image_size": 224, "patch_size": 16});
    let kind = Some(HeadKind::ImageClassification);
    let options = HeadOptions { kind, num_labels: Some(8), ..HeadOptions::default() };
    configure(&ModelDir::of_config(object(config)), &options).unwrap()
}

fn wrapped(options: Value, adapter: Value) -> Result<Box<dyn AdapterConfig>> {
    let mut adapter = object(adapter);
    let name = adapter.remove("method").unwrap();
    let inner = find(MethodKind::Adapter, name.as_str().unwrap())?.parse(&adapter, "adapter")?;
    let around = find(MethodKind::Compress, "adapter_qat")?.around(&object(options), "compress")?;
    around.unwrap().wrap(inner)
}

fn bytes(options: Value, adapter: Value) -> u64 {
    let plan = wrapped(options, adapter).unwrap().plan(&*vit()).unwrap();
    let note = plan.notes.last().unwrap();
    note.split_whitespace().rev().nth(4).unwrap().parse().unwrap_or_else(|_| panic!("{note}"))
}

/// The sizes of the released files.
#[test]
fn files_are_as_large_as_the_papers() {
    let adaptformer = || json!({"method": "adaptformer", "bias": false, "modules_to_save": ["classifier"]});
    assert_eq!(bytes(json!({"dim": 32}), adaptformer()), 73_920);
    assert_eq!(bytes(json!({"dim": 32, "bihead": true}), adaptformer()), 74_696);
    assert_eq!(bytes(json!({"dim": 1, "bihead": true}), adaptformer()), 3_272);
    let lora = json!({"method": "lora", "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]});
    assert_eq!(bytes(json!({"dim": 32, "bihead": true}), lora), 148_616);
}

#[test]
fn what_is_no_matrix_is_refused() {
    let with_bias = wrapped(json!({}), json!({"method": "adaptformer"})).unwrap();
    let error = with_bias.plan(&*vit()).unwrap_err();
    assert!(error.message().starts_with("bit: "), "{error}");
    let plain = wrapped(json!({"bit": 32}), json!({"method": "adaptformer"})).unwrap();
    let alone = find(MethodKind::Adapter, "adaptformer").unwrap().parse(&Map::new(), "adapter").unwrap();
    let (plain, alone) = (plain.plan(&*vit()).unwrap(), alone.plan(&*vit()).unwrap());
    assert_eq!(plain.tensors, alone.tensors, "with 32 bits it is the adapter");
    let headless = wrapped(json!({"bihead": true}), json!({"method": "adaptformer", "bias": false})).unwrap();
    let error = headless.plan(&*vit()).unwrap_err();
    assert!(error.message().starts_with("bihead: "), "{error}");
    let error = wrapped(json!({"dim": 4}), json!({"method": "vera"})).unwrap_err();
    assert!(error.message().starts_with("dim: "), "{error}");
}

#[test]
fn options_of_the_wrap_stand_in_for_those_of_the_adapter() {
    let config = wrapped(json!({"dim": 3, "scale": 10.0}), json!({"method": "lora", "r": 8})).unwrap();
    let plan = config.plan(&*vit()).unwrap();
    assert_eq!(plan.tensors[0].shape, [3, 768]);
    let file = config.adapter_config(&*vit(), &plan, &Export { base: "b" });
    assert_eq!((&file["adapter"]["r"], &file["adapter"]["lora_alpha"]), (&json!(3), &json!(30)));
    assert_eq!(file["coded"][plan.tensors[0].name.as_str()], json!([3, 768]));
}
