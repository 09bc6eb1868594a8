//! JSON whose bytes depend on its content alone.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use pleach_base::{Result, ResultExt, code};

/// Pretty JSON with the keys of every object sorted, two spaces of indent and a final newline: equal content gives
/// equal bytes, whatever order the keys were inserted in.
///
/// # Errors
/// `INTERNAL` when `value` has no JSON form (a map with keys that are not text, a number that is not finite).
pub fn canonical<T: Serialize + ?Sized>(value: &T) -> Result<Bytes> {
    let value = serde_json::to_value(value).or_code(code::INTERNAL, || "cannot write a record as JSON".to_owned())?;
    let mut text = serde_json::to_vec_pretty(&sorted(value))
        .or_code(code::INTERNAL, || "cannot write a record as JSON".to_owned())?;
    text.push(b'\n');
    Ok(text.into())
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(fields))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn key_order_does_not_reach_the_bytes() {
        let one = json!({"b": [{"z": 1, "a": 2.5}], "a": "x"});
        let other = json!({"a": "x", "b": [{"a": 2.5, "z": 1}]});
        let bytes = super::canonical(&one).unwrap();
        assert_eq!(bytes, super::canonical(&other).unwrap());
        assert!(bytes.starts_with(b"{\n  \"a\": \"x\",\n  \"b\""), "{bytes:?}");
        assert!(bytes.ends_with(b"}\n"));
    }
}
