//! `adapter_config.json` of methods that PEFT does not know: the options under their own names beside `pleach_method`.

use pleach_nn::BackboneConfig;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::adapter::{Export, Options};
use crate::card::Card;

/// The fields: `pleach_method`, the options, and what every adapter folder says of its base.
pub(crate) fn own_config<C: Options + Serialize>(
    options: &C,
    model: &dyn BackboneConfig,
    export: &Export<'_>,
) -> Map<String, Value> {
    own_fields(C::CARD, options, model, export)
}

/// The same for methods that stand around others.
pub(crate) fn own_fields<C: Serialize>(
    card: &Card,
    options: &C,
    model: &dyn BackboneConfig,
    export: &Export<'_>,
) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(options) {
        Ok(Value::Object(own)) => own,
        _ => Map::new(),
    };
    let shared = [
        ("pleach_method", json!(card.name)),
        ("base_model_name_or_path", json!(export.base)),
        ("task_type", json!(model.info().head.task_type())),
    ];
    fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
    fields.sort_keys();
    fields
}
