//! `adapter_config.json` of LoRA as PEFT writes it.

use pleach_nn::{BackboneConfig, Modules};
use serde_json::{Map, Value, json};

use super::Config;
use crate::adapter::{Export, saved};
use crate::options::Later;
use crate::plan::Plan;

/// The release of PEFT whose fields these are.
const PEFT_VERSION: &str = "0.21.2";

/// Options of PEFT's LoRA for its variants.
pub(super) const LATER: &[Later] = &[
    Later::new("alora_invocation_tokens"),
    Later::new("arrow_config"),
    Later::new("corda_config"),
    Later::new("ensure_weight_tying"),
    Later::new("eva_config"),
    Later::new("kasa_config"),
    Later::new("layer_replication"),
    Later::new("loftq_config"),
    Later::new("lora_bias"),
    Later::new("lora_ga_config"),
    Later::new("megatron_config"),
    Later { name: "megatron_core", off: "\"megatron.core\"" },
    Later::new("monteclora_config"),
    Later { name: "qalora_group_size", off: "16" },
    Later::new("target_parameters"),
    Later::new("trainable_token_indices"),
    Later::new("use_bdlora"),
    Later::new("use_dora"),
    Later::new("use_qalora"),
    Later::new("velora_config"),
];

/// The fields, keys in order. Targets that PEFT would have to work out (defaults, `all-linear`) are written as names.
pub(super) fn adapter_config(
    config: &Config,
    model: &dyn BackboneConfig,
    plan: &Plan,
    export: &Export<'_>,
) -> Map<String, Value> {
    let targets = match &config.target_modules {
        Some(modules) if !is_all_linear(modules) => json!(modules),
        _ => json!(model.sites().shortest_names(&plan.sites)),
    };
    let saved = saved::names(config.modules_to_save.as_deref(), model);
    let mut fields = Map::new();
    for later in LATER {
        fields.insert(later.name.to_owned(), off_value(later.name));
    }
    let own = [
        ("alpha_pattern", json!(config.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect::<Map<_, _>>())),
        ("auto_mapping", Value::Null),
        ("base_model_name_or_path", json!(export.base)),
        ("bias", json!(config.bias)),
        ("exclude_modules", json!(config.exclude_modules)),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(config.init_lora_weights)),
        ("layers_pattern", json!(config.layers_pattern)),
        ("layers_to_transform", json!(config.layers_to_transform)),
        ("lora_alpha", number(config.lora_alpha)),
        ("lora_dropout", json!(config.lora_dropout)),
        ("modules_to_save", if saved.is_empty() { Value::Null } else { json!(saved) }),
        ("peft_type", json!("LORA")),
        ("peft_version", json!(PEFT_VERSION)),
        ("r", json!(config.r)),
        ("rank_pattern", json!(config.rank_pattern)),
        ("revision", Value::Null),
        ("target_modules", targets),
        ("task_type", json!(model.info().head.task_type())),
        ("use_rslora", json!(config.use_rslora)),
    ];
    fields.extend(own.map(|(name, value)| (name.to_owned(), value)));
    fields.sort_keys();
    fields
}

fn is_all_linear(modules: &Modules) -> bool {
    matches!(modules, Modules::Regex(text) if text.eq_ignore_ascii_case("all-linear"))
}

/// PEFT's default of an option that this build does not have.
fn off_value(name: &str) -> Value {
    match name {
        "ensure_weight_tying" | "lora_bias" | "use_dora" | "use_qalora" => json!(false),
        "loftq_config" => json!({}),
        "megatron_core" => json!("megatron.core"),
        "qalora_group_size" => json!(16),
        _ => Value::Null,
    }
}

/// Whole numbers as PEFT's users write them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
