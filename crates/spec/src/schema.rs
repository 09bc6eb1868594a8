//! The JSON schema of a job file, for editors and for [`crate::load`]. Schemas of methods are joined by the caller.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::job::Job;

/// Schemas of method configurations: kind (`adapter`, `router`, ...) to name to JSON schema.
pub type MethodSchemas = BTreeMap<String, BTreeMap<String, Value>>;

/// Where each kind's section stands: kind, definition, property.
const SECTIONS: &[(&str, &str, &str)] = &[
    ("adapter", "TaskSpec", "adapter"),
    ("router", "JobSpec", "router"),
    ("strategy", "JobSpec", "strategy"),
    ("attention", "JobSpec", "attention"),
    ("compress", "JobSpec", "compress"),
];

/// The job's own schema, without methods.
pub(crate) fn job() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(Job).to_value())
}

/// The whole schema: a section accepts exactly the methods of its kind, each with its own options. With no methods of
/// a kind the section stays free.
#[must_use]
pub fn schema(methods: &MethodSchemas) -> Value {
    let mut root = job().clone();
    for (kind, definition, property) in SECTIONS {
        let Some(members) = methods.get(*kind).filter(|members| !members.is_empty()) else { continue };
        let choices: Vec<Value> = members.iter().map(|(name, schema)| section(&mut root, kind, name, schema)).collect();
        if let Some(place) = root.pointer_mut(&format!("/$defs/{definition}/properties/{property}")) {
            let about = place.get("description").cloned();
            *place = json!({ "oneOf": choices });
            if let Some(about) = about {
                place["description"] = about;
            }
        }
    }
    root
}

/// One method's section as a definition of `root`; returns the reference to it.
fn section(root: &mut Value, kind: &str, name: &str, schema: &Value) -> Value {
    let mut schema = schema.clone();
    let prefix = format!("{kind}.{name}");
    if let Some(Value::Object(inner)) = schema.as_object_mut().and_then(|map| map.remove("$defs")) {
        for (inner_name, mut definition) in inner {
            rename_refs(&mut definition, &prefix);
            root["$defs"][format!("{prefix}.{inner_name}")] = definition;
        }
    }
    rename_refs(&mut schema, &prefix);
    if let Some(map) = schema.as_object_mut() {
        map.remove("$schema");
        let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
        properties["method"] = json!({ "const": name, "description": "Name of the method." });
        let required = map.entry("required").or_insert_with(|| json!([]));
        if let Some(list) = required.as_array_mut() {
            list.insert(0, json!("method"));
        }
    }
    root["$defs"][&prefix] = schema;
    json!({ "$ref": format!("#/$defs/{prefix}") })
}

fn rename_refs(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(map) => {
            for (key, below) in map.iter_mut() {
                match (key.as_str(), below) {
                    ("$ref", Value::String(text)) => *text = text.replace("#/$defs/", &format!("#/$defs/{prefix}.")),
                    (_, below) => rename_refs(below, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename_refs(item, prefix)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_join_under_their_kind_with_their_own_definitions() {
        let lora = json!({
            "type": "object", "additionalProperties": false,
            "properties": {"r": {"type": "integer"}, "init": {"$ref": "#/$defs/Init"}},
            "$defs": {"Init": {"enum": ["gaussian"]}},
        });
        let methods = MethodSchemas::from([("adapter".into(), BTreeMap::from([("lora".into(), lora)]))]);
        let whole = schema(&methods);
        assert_eq!(whole["$defs"]["TaskSpec"]["properties"]["adapter"]["oneOf"][0]["$ref"], "#/$defs/adapter.lora");
        assert_eq!(whole["$defs"]["adapter.lora"]["properties"]["init"]["$ref"], "#/$defs/adapter.lora.Init");
        assert_eq!(whole["$defs"]["adapter.lora"]["properties"]["method"]["const"], "lora");
        assert_eq!(whole["$defs"]["adapter.lora.Init"]["enum"][0], "gaussian");
    }

    #[test]
    fn every_section_of_the_table_exists() {
        for (kind, definition, property) in SECTIONS {
            let path = format!("/$defs/{definition}/properties/{property}");
            assert!(job().pointer(&path).is_some(), "{kind}: {path}");
        }
    }
}
