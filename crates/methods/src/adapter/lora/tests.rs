use std::path::PathBuf;

use pleach_nn::{HeadKind, HeadOptions, Init, ModelDir, configure};
use serde_json::json;

use super::*;
use crate::card::MethodKind;
use crate::registry::{Method, find};

fn model(name: &str, kind: Option<HeadKind>) -> Box<dyn BackboneConfig> {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/parity")).join(name).join("model");
    configure(&ModelDir::config_only(&path).unwrap(), &HeadOptions { kind, ..HeadOptions::default() }).unwrap()
}

fn lora() -> &'static dyn Method {
    find(MethodKind::Adapter, "lora").unwrap()
}

fn plan(model: &dyn BackboneConfig, options: &Value) -> Result<Plan> {
    lora().parse(options.as_object().unwrap(), "spec.tasks[0].adapter")?.plan(model)
}

#[test]
fn defaults_are_pefts() {
    let config = Config::default();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (8, 8.0, 0.0));
    let llama = model("llama-lora", None);
    let paths = |plan: &Plan, model: &dyn BackboneConfig| -> Vec<_> {
        plan.sites.iter().map(|id| model.sites()[*id].path.clone()).collect()
    };
    let found = plan(&*llama, &json!({})).unwrap();
    assert_eq!(paths(&found, &*llama)[..2], ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]);
    let bert = model("bert-lora", None);
    let found = plan(&*bert, &json!({})).unwrap();
    let first = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.value"];
    assert_eq!(paths(&found, &*bert)[..2], first);
    assert_eq!(found.saved.len(), 1, "classification trains its head");
}

#[test]
fn counts_are_those_of_the_recorded_cases() {
    let r4 = json!({"r": 4, "target_modules": "all-linear"});
    assert_eq!(plan(&*model("llama-lora", None), &r4).unwrap().params(), 9_344);
    assert_eq!(plan(&*model("bert-lora", None), &json!({"r": 4})).unwrap().params(), 2_243);
    let qv = json!({"r": 8, "use_rslora": true});
    assert_eq!(plan(&*model("llama-lora-qv-rslora", None), &qv).unwrap().params(), 3_584);
}

#[test]
fn patterns_change_rank_and_scaling_of_what_they_match() {
    let options =
        json!({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*v_proj": 4}});
    let config: Config = serde_json::from_value(options.clone()).unwrap();
    let (q, v) = ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj");
    assert_eq!((config.rank(q).unwrap(), config.rank(v).unwrap()), (2, 8));
    assert_eq!((config.scaling(q).unwrap(), config.scaling(v).unwrap()), (8.0, 0.5));
    let rs = Config { use_rslora: true, ..config };
    assert_eq!(rs.scaling(v).unwrap(), 4.0 / 8f64.sqrt());
    let llama = model("llama-lora", None);
    let shapes: Vec<_> = plan(&*llama, &options).unwrap().tensors.iter().map(|tensor| tensor.shape.clone()).collect();
    assert_eq!(shapes[..4], [vec![2, 64], vec![64, 2], vec![8, 64], vec![32, 8]]);
}

#[test]
fn beginnings_are_as_asked() {
    let llama = model("llama-lora", None);
    let inits =
        |options: Value| -> Vec<_> { plan(&*llama, &options).unwrap().tensors[..2].iter().map(|t| t.init).collect() };
    assert_eq!(inits(json!({})), [Init::Uniform { bound: 0.125 }, Init::Zeros]);
    assert_eq!(inits(json!({"init_lora_weights": "gaussian", "r": 4})), [Init::Normal { std: 0.25 }, Init::Zeros]);
    let none = inits(json!({"init_lora_weights": false, "r": 4}));
    assert_eq!(none, [Init::Uniform { bound: 0.125 }, Init::Uniform { bound: 0.5 }]);
    let pissa = plan(&*llama, &json!({"init_lora_weights": "pissa_niter_4", "target_modules": ["q_proj"]})).unwrap();
    let parts: Vec<_> = pissa.tensors[..4].iter().map(|tensor| (tensor.part, tensor.init, tensor.in_file())).collect();
    let first = |part, in_file| (part, Init::Derived, in_file);
    assert_eq!(parts, [first("lora_A", true), first("lora_B", true), first("start_A", false), first("start_B", false)]);
}

#[test]
fn modules_to_save_are_whole_and_no_targets() {
    let llama = model("llama-lora", None);
    let options = json!({"target_modules": "all-linear", "modules_to_save": ["lm_head", "layers.1.mlp"]});
    let found = plan(&*llama, &options).unwrap();
    let saved: Vec<_> = found.saved.iter().map(|id| llama.sites()[*id].path.as_str()).collect();
    assert_eq!(
        saved,
        ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    );
    assert!(found.saved.iter().all(|id| !found.sites.contains(id)));
    let last = found.tensors.last().unwrap();
    assert_eq!((last.name.as_str(), last.init), ("base_model.model.lm_head.weight", Init::Base));
    let error = plan(&*llama, &json!({"modules_to_save": ["lm_haed"]})).unwrap_err();
    assert_eq!(error.code(), code::TARGET_NOTHING);
    assert!(error.hint_text().unwrap().contains("lm_head"));
}

#[test]
fn errors_begin_with_the_place() {
    let llama = model("llama-lora", None);
    let message = |options: Value| plan(&*llama, &options).unwrap_err().message().to_owned();
    assert_eq!(message(json!({"r": 0})), "spec.tasks[0].adapter.r: must be at least 1");
    assert_eq!(
        message(json!({"use_qalora": true})),
        "spec.tasks[0].adapter.use_qalora: this build does not have this option"
    );
    assert!(message(json!({"r": "x"})).starts_with("spec.tasks[0].adapter.r: invalid type"));
    let error = plan(&*llama, &json!({"lora_aplha": 4})).unwrap_err();
    assert_eq!(error.message(), "spec.tasks[0].adapter.lora_aplha: unknown key");
    assert_eq!(error.hint_text(), Some("did you mean `lora_alpha`?"));
    assert!(plan(&*llama, &json!({"use_qalora": false, "megatron_core": "megatron.core"})).is_ok(), "off is no option");
}

#[test]
fn written_targets_select_the_same_in_peft() {
    let bare = model("bert-lora", Some(HeadKind::Embedding));
    let config =
        lora().parse(json!({"target_modules": "all-linear", "lora_alpha": 0.5}).as_object().unwrap(), "a").unwrap();
    let found = config.plan(&*bare).unwrap();
    assert_eq!(found.notes.len(), 1, "the pooler is there and not run: {:?}", found.notes);
    let written = config.adapter_config(&*bare, &found, &Export { base: "b" });
    assert_eq!(written["target_modules"], json!(["dense", "key", "query", "value"]));
    assert_eq!((&written["task_type"], &written["modules_to_save"]), (&json!("FEATURE_EXTRACTION"), &Value::Null));
    assert_eq!(written["lora_alpha"], json!(0.5));
    assert!(written.keys().is_sorted());
    let again = lora().import(&written).unwrap().plan(&*bare).unwrap();
    assert_eq!(again.tensors, found.tensors);
}

#[test]
fn variants_add_tensors_under_pefts_names() {
    let bert = model("bert-lora", None);
    let names = |options: Value| -> Vec<String> {
        plan(&*bert, &options).unwrap().tensors.iter().filter(|t| t.in_file()).map(|t| t.name.clone()).collect()
    };
    let query = "base_model.model.bert.encoder.layer.0.attention.self.query";
    let dora = names(json!({"use_dora": true, "target_modules": ["query"]}));
    assert_eq!(dora[2], format!("{query}.lora_magnitude_vector"));
    assert_eq!(names(json!({"lora_bias": true}))[2], format!("{query}.lora_B.bias"));
    let only = names(json!({"bias": "lora_only"}));
    assert!(only.contains(&format!("{query}.base_layer.bias")));
    assert!(!only.iter().any(|name| name.ends_with("key.bias")));
    let all = names(json!({"bias": "all"}));
    assert!(all.contains(&"base_model.model.bert.embeddings.LayerNorm.bias".to_owned()));
    assert_eq!(all.iter().filter(|name| name.ends_with("classifier.bias")).count(), 1, "saved whole already");
    let table = names(json!({"target_modules": ["word_embeddings"]}));
    assert_eq!(table[0], "base_model.model.bert.embeddings.word_embeddings.lora_embedding_A");
}

#[test]
fn lora_plus_speeds_up_what_comes_after_a() {
    let bert = model("bert-lora", None);
    let options = json!({
        "loraplus_lr_ratio": 16, "loraplus_lr_embedding": 0.5, "use_dora": true, "bias": "lora_only",
        "target_modules": ["query", "word_embeddings"],
    });
    let config = lora().parse(options.as_object().unwrap(), "a").unwrap();
    let found = config.plan(&*bert).unwrap();
    let scale = |end: &str| config.lr_scale(found.tensors.iter().find(|tensor| tensor.name.ends_with(end)).unwrap());
    assert_eq!((scale("query.lora_A.weight"), scale("query.lora_B.weight")), (1.0, 16.0));
    assert_eq!((scale("query.lora_magnitude_vector"), scale("query.base_layer.bias")), (16.0, 16.0));
    assert_eq!((scale("lora_embedding_A"), scale("lora_embedding_B")), (0.5, 0.5));
    let written = config.adapter_config(&*bert, &found, &Export { base: "b" });
    assert!(!written.contains_key("loraplus_lr_ratio"), "PEFT's file has no such field");
}

/// PEFT wraps one module once for each of its parameters, the last one outermost.
#[test]
fn parameters_of_one_module_are_wrapped_one_in_the_other() {
    let mixtral = model("mixtral-experts", None);
    let options =
        json!({"r": 2, "target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]});
    let found = plan(&*mixtral, &options).unwrap();
    let block = "base_model.model.model.layers.0.mlp.experts";
    let named: Vec<_> = found.tensors[..4].iter().map(|tensor| (tensor.name.as_str(), tensor.shape.len())).collect();
    let names = [
        format!("{block}.base_layer.lora_A.weight"),
        format!("{block}.base_layer.lora_B.weight"),
        format!("{block}.lora_A.weight"),
        format!("{block}.lora_B.weight"),
    ];
    assert_eq!(named, names.each_ref().map(|name| (name.as_str(), 2)));
    let error = plan(&*mixtral, &json!({"target_parameters": ["experts.gate_up"]})).unwrap_err();
    assert_eq!(error.code(), code::TARGET_NOTHING);
    assert!(error.hint_text().unwrap().contains("gate_up_proj"), "{error:?}");
    let none = plan(&*mixtral, &json!({"target_modules": ["q_proj"], "target_parameters": [], "use_dora": true}));
    assert_eq!(none.unwrap().sites.len(), 1, "an empty list names nothing");
    let twice = json!({"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]});
    assert_eq!(plan(&*mixtral, &twice).unwrap_err().code(), code::METHOD_CONFIG);
    let config = lora().parse(options.as_object().unwrap(), "a").unwrap();
    assert_eq!(config.adapter_config(&*mixtral, &found, &Export { base: "b" })["target_modules"], json!([]));
}
