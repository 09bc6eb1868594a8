//! How PEFT's options that may be one thing or a list look in a schema.

use schemars::JsonSchema;

/// A name or a list of names.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the schema only")]
pub(crate) enum ModulesSchema {
    Text(String),
    List(Vec<String>),
}

/// A number or a list of numbers.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the schema only")]
pub(crate) enum IndicesSchema {
    One(u32),
    Many(Vec<u32>),
}
