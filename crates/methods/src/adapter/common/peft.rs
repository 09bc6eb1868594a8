//! `adapter_config.json` as PEFT writes it: the method's options under their own names, PEFT's options that this build
//! does not have at their defaults, and the fields that all its tuners share.

use pleach_nn::{BackboneConfig, WeightLayout};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Targets;
use crate::adapter::{Export, Options};
use crate::plan::Plan;

/// The release of PEFT whose fields these are.
pub(crate) const PEFT_VERSION: &str = "0.21.2";

/// The fields, keys in order. Options that only Pleach has are marked `#[serde(skip_serializing)]` by their method.
/// `targets`: `None` for methods that choose no modules.
pub(crate) fn peft_config<C: Options + Serialize>(
    config: &C,
    targets: Option<&Targets>,
    model: &dyn BackboneConfig,
    plan: &Plan,
    export: &Export<'_>,
) -> Map<String, Value> {
    let mut fields = Map::new();
    for later in C::LATER {
        fields.insert(later.name.to_owned(), later.default());
    }
    if let Ok(Value::Object(own)) = serde_json::to_value(config) {
        fields.extend(own.into_iter().map(|(name, value)| (name, whole(value))));
    }
    if let Some(targets) = targets {
        targets.resolve(&mut fields, model, plan);
    }
    if let Some(turned) = fields.get_mut("fan_in_fan_out") {
        // PEFT sets it itself, with a warning, where modules are stored input first.
        let input_first = |id: &pleach_nn::SiteId| {
            model.sites()[*id].weight.as_ref().is_some_and(|weight| weight.layout == WeightLayout::InOut)
        };
        *turned = json!(plan.sites.iter().any(input_first));
    }
    let shared = [
        ("auto_mapping", Value::Null),
        ("base_model_name_or_path", json!(export.base)),
        ("inference_mode", json!(true)),
        ("peft_type", json!(C::CARD.peft_type)),
        ("peft_version", json!(PEFT_VERSION)),
        ("revision", Value::Null),
        ("task_type", json!(model.info().head.task_type())),
    ];
    fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
    fields.sort_keys();
    fields
}

/// The fields of methods without `exclude_modules` in PEFT: where it is given, the modules are written by name.
pub(crate) fn without_exclude<C: Options + Serialize>(
    config: &C,
    targets: Option<&Targets>,
    model: &dyn BackboneConfig,
    plan: &Plan,
    export: &Export<'_>,
) -> Map<String, Value> {
    let by_name = |targets: &Targets| match &targets.exclude_modules {
        Some(_) => Targets { target_modules: None, ..targets.clone() },
        None => targets.clone(),
    };
    let mut fields = peft_config(config, targets.map(by_name).as_ref(), model, plan, export);
    fields.shift_remove("exclude_modules");
    fields
}

/// Whole numbers as PEFT's users write them.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value != 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn whole(value: Value) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => n.as_f64().map_or(Value::Number(n), number),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, whole(value))).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => other,
    }
}
