//! From raw options to a method's typed ones, with errors that name the option.

use pleach_base::{Error, Result, code, suggest};
use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// An option of PEFT's that this build does not have: allowed at the value that turns it off.
#[derive(Clone, Copy, Debug)]
pub struct Later {
    /// Its name.
    pub name: &'static str,
    /// PEFT's default, as JSON: it turns the option off, as null, false, `{}` and `[]` do.
    pub off: &'static str,
}

impl Later {
    /// An option whose default is null.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, off: "null" }
    }

    /// An option with another default.
    #[must_use]
    pub const fn off(name: &'static str, off: &'static str) -> Self {
        Self { name, off }
    }

    /// PEFT's default.
    pub(crate) fn default(self) -> Value {
        serde_json::from_str(self.off).unwrap_or_default()
    }

    fn is_off(self, value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            other @ (Value::Number(_) | Value::String(_) | Value::Bool(true)) => format!("{other}") == self.off,
        }
    }
}

/// An error whose message begins with an option's name, as an error about that option of the section `at`.
pub(crate) fn under(error: &Error, at: &str) -> Error {
    error.code().error(format!("{at}.{}", error.message())).maybe_hint(error.hint_text().map(str::to_owned))
}

/// Names of the options of `T`.
pub(crate) fn names<T: JsonSchema>() -> Vec<String> {
    let schema = schema_for!(T);
    schema.get("properties").and_then(Value::as_object).map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

/// Types options, refusing unknown ones.
pub(crate) fn typed<T: DeserializeOwned + JsonSchema>(
    options: &Map<String, Value>,
    at: &str,
    later: &[Later],
) -> Result<T> {
    let known = names::<T>();
    let mut kept = Map::new();
    for (key, value) in options {
        if known.contains(key) {
            // Null is PEFT's way to leave an option out.
            if !value.is_null() {
                kept.insert(key.clone(), value.clone());
            }
            continue;
        }
        match later.iter().find(|option| option.name == key) {
            Some(option) if option.is_off(value) => {}
            Some(_) => {
                return Err(code::METHOD_CONFIG
                    .error(format!("{at}.{key}: this build does not have this option"))
                    .hint(format!("remove `{key}`")));
            }
            None => {
                let hint = suggest::did_you_mean(key, known.iter().map(String::as_str).collect::<Vec<_>>());
                return Err(code::UNKNOWN_KEY.error(format!("{at}.{key}: unknown key")).hint(hint));
            }
        }
    }
    field_by_field(&kept, at)
}

/// Deserialises; on failure finds out which option it was by leaving one out at a time.
fn field_by_field<T: DeserializeOwned>(options: &Map<String, Value>, at: &str) -> Result<T> {
    let parse = |map: &Map<String, Value>| T::deserialize(Value::Object(map.clone()));
    parse(options).map_err(|error| {
        let culprit = options.keys().find(|key| {
            let alone: Map<_, _> =
                options.iter().filter(|(k, _)| k == key).map(|(k, v)| (k.clone(), v.clone())).collect();
            parse(&alone).is_err()
        });
        let place = culprit.map_or_else(|| at.to_owned(), |key| format!("{at}.{key}"));
        code::METHOD_CONFIG.error(format!("{place}: {error}"))
    })
}
