//! Holds a tree against a JSON schema and complains as a person would: unknown keys with the nearest name, wrong types
//! with what was found. Understands the subset of JSON Schema that `schemars` writes for our types.

use pleach_base::{Error, Result, code, suggest};
use serde_json::{Map, Value};

use crate::hints;
use crate::job::Section;
use crate::places::join;
use crate::tree::{Data, Node, Place};

/// Checks a method's options against the JSON schema of its configuration; `at` is the section's path, such as
/// `spec.tasks[0].adapter`. The key `method` is always known.
///
/// # Errors
/// `UNKNOWN_KEY` or `BAD_VALUE`; the message starts with the path of the key, so [`crate::Places::locate`] finds it.
pub fn check_section(schema: &Value, section: &Section, at: &str) -> Result<()> {
    let options = Value::Object(section.options.clone());
    let node = Node::at_place(&options, &Place::Text { line: 0, column: 0 });
    Checker { root: schema, job: None }.check(schema, &node, at)
}

/// Checks a whole job document.
pub(crate) fn document(schema: &Value, root: &Node) -> Result<()> {
    Checker { root: schema, job: Some(schema) }.check(schema, root, "")
}

struct Checker<'a> {
    /// Holds `$defs`.
    root: &'a Value,
    /// The job's schema, searched for the right place of a misplaced key.
    job: Option<&'a Value>,
}

impl<'a> Checker<'a> {
    fn check(&self, schema: &'a Value, node: &Node, path: &str) -> Result<()> {
        let schema = self.follow(schema);
        if let Some(choices) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
            return self.any(choices, node, path);
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return word(&words.iter().collect::<Vec<_>>(), node, path);
        }
        if !fits(schema, node) {
            return Err(wrong_type(schema, node, path));
        }
        match &node.data {
            Data::Scalar(value) => range(schema, value, path),
            Data::List(items) => self.list(schema, items, path),
            Data::Map(_) => self.map(schema, node, path),
        }
    }

    fn follow(&self, mut schema: &'a Value) -> &'a Value {
        // References of our types do not nest deeper than this.
        for _ in 0..8 {
            let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) else {
                break;
            };
            schema = self.root.get("$defs").and_then(|defs| defs.get(name)).unwrap_or(&Value::Bool(true));
        }
        schema
    }

    /// Optional values (`anyOf` with null), enums (`oneOf` of constants), and free choices.
    fn any(&self, choices: &'a [Value], node: &Node, path: &str) -> Result<()> {
        let words: Vec<_> = choices.iter().flat_map(constants).collect();
        if !words.is_empty() && choices.iter().all(|choice| constants(choice).next().is_some()) {
            return word(&words, node, path);
        }
        let mut last = None;
        for choice in choices {
            let choice = self.follow(choice);
            match self.check(choice, node, path) {
                Ok(()) => return Ok(()),
                // The branch of the right shape tells the most.
                Err(error) if last.is_none() || fits(choice, node) => last = Some(error),
                Err(_) => {}
            }
        }
        last.map_or(Ok(()), Err)
    }

    fn list(&self, schema: &'a Value, items: &[Node], path: &str) -> Result<()> {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let most = schema.get("maxItems").and_then(Value::as_u64).unwrap_or(u64::MAX);
        let count = items.len() as u64;
        if count < least || count > most {
            let want = if least == most { format!("{least}") } else { format!("at least {least}") };
            return Err(code::BAD_VALUE.error(format!("{path}: expected {want} values, found {count}")));
        }
        if let Some(each) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.check(each, item, &format!("{path}[{index}]"))?;
            }
        }
        Ok(())
    }

    fn map(&self, schema: &'a Value, node: &Node, path: &str) -> Result<()> {
        let Data::Map(entries) = &node.data else { return Ok(()) };
        let none = Map::new();
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let others = schema.get("additionalProperties");
        for (key, entry) in entries {
            let at = join(path, key);
            match (known.get(key), others) {
                (Some(schema), _) => self.check(schema, &entry.node, &at)?,
                (None, Some(Value::Bool(false))) => return Err(self.unknown(key, known, &at)),
                (None, Some(schema @ Value::Object(_))) => self.check(schema, &entry.node, &at)?,
                (None, _) => {}
            }
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for key in required {
            if !entries.contains_key(key) {
                let about = known.get(key).and_then(|schema| self.follow(schema).get("description")?.as_str());
                let at = if path.is_empty() { "spec" } else { path };
                return Err(code::BAD_VALUE
                    .error(format!("{at}: the key `{key}` is missing"))
                    .maybe_hint(about.map(|text| format!("{key}: {}", hints::first_sentence(text)))));
            }
        }
        Ok(())
    }

    /// A key of another trainer, a key that belongs elsewhere, a slip, or anybody's guess: in this order.
    fn unknown(&self, key: &str, known: &Map<String, Value>, at: &str) -> Error {
        let names = known.keys().map(String::as_str);
        let elsewhere = || {
            let home = hints::home_of(self.job?, key)?;
            Some(format!("`{key}` belongs to `{home}`"))
        };
        let foreign = |ours| format!("Pleach calls it `{ours}`");
        let hint = hints::foreign(key)
            .map(foreign)
            .or_else(elsewhere)
            .or_else(|| suggest::nearest(key, names.clone()).map(|name| format!("did you mean `{name}`?")))
            .or_else(|| hints::foreign_slip(key).map(foreign))
            .unwrap_or_else(|| suggest::did_you_mean(key, names));
        code::UNKNOWN_KEY.error(format!("{at}: unknown key")).hint(hint)
    }
}

/// The constant of a branch of an enum, and what is accepted instead of it.
fn constants(choice: &Value) -> impl Iterator<Item = &Value> {
    let aliases = choice.get("x-aliases").and_then(Value::as_array).into_iter().flatten();
    let several = choice.get("enum").and_then(Value::as_array).into_iter().flatten();
    choice.get("const").into_iter().chain(several).chain(aliases)
}

fn word(words: &[&Value], node: &Node, path: &str) -> Result<()> {
    let found = node.to_value();
    if words.contains(&&found) {
        return Ok(());
    }
    let names: Vec<_> = words.iter().filter_map(|word| word.as_str()).collect();
    let error = code::BAD_VALUE.error(format!("{path}: {} is none of {}", shown(node), names.join(", ")));
    let near = found.as_str().and_then(|text| suggest::nearest(text, names.iter().copied()));
    Err(error.maybe_hint(near.map(|name| format!("did you mean `{name}`?"))))
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn fits(schema: &Value, node: &Node) -> bool {
    let types = types(schema);
    types.is_empty()
        || types.iter().any(|name| match (&node.data, *name) {
            (Data::List(_), "array") | (Data::Map(_), "object") => true,
            (Data::Scalar(Value::Number(number)), "integer") => !number.is_f64(),
            (Data::Scalar(Value::Number(_)), "number")
            | (Data::Scalar(Value::String(_)), "string")
            | (Data::Scalar(Value::Bool(_)), "boolean")
            | (Data::Scalar(Value::Null), "null") => true,
            _ => false,
        })
}

fn wrong_type(schema: &Value, node: &Node, path: &str) -> Error {
    let types = types(schema);
    let wanted: Vec<_> = types
        .iter()
        .filter_map(|name| match *name {
            "integer" => Some("a whole number"),
            "number" => Some("a number"),
            "string" => Some("text"),
            "boolean" => Some("true or false"),
            "array" => Some("a list"),
            "object" => Some("a map"),
            _ => None,
        })
        .collect();
    let error = code::BAD_VALUE.error(format!("{path}: expected {}, found {}", wanted.join(" or "), shown(node)));
    match &node.data {
        Data::Scalar(value @ (Value::Number(_) | Value::Bool(_))) if types.contains(&"string") => {
            error.hint(format!("quote it: \"{value}\""))
        }
        Data::Scalar(Value::String(text)) if types.contains(&"boolean") && text.len() <= 3 => {
            error.hint("YAML 1.2 knows `true` and `false` only")
        }
        _ => error,
    }
}

fn range(schema: &Value, value: &Value, path: &str) -> Result<()> {
    let Some(number) = value.as_number() else { return Ok(()) };
    let least = schema.get("minimum").and_then(Value::as_f64);
    let most = schema.get("maximum").and_then(Value::as_f64).or_else(|| match schema.get("format")?.as_str()? {
        "uint32" => Some(f64::from(u32::MAX)),
        "int32" => Some(f64::from(i32::MAX)),
        "uint64" => Some(u64::MAX as f64),
        _ => None,
    });
    let is = number.as_f64().unwrap_or(f64::NAN);
    if least.is_some_and(|least| is < least) {
        return Err(code::BAD_VALUE.error(format!("{path}: {number} is below {}", least.unwrap_or_default())));
    }
    if most.is_some_and(|most| is > most) {
        return Err(code::BAD_VALUE.error(format!("{path}: {number} is above {}", most.unwrap_or_default())));
    }
    Ok(())
}

/// What was found, short.
fn shown(node: &Node) -> String {
    match &node.data {
        Data::Map(_) => "a map".into(),
        Data::List(_) => "a list".into(),
        Data::Scalar(Value::Null) => "nothing".into(),
        Data::Scalar(Value::String(text)) if text.chars().count() > 40 => {
            format!("the text `{}...`", text.chars().take(37).collect::<String>())
        }
        Data::Scalar(Value::String(text)) => format!("the text `{text}`"),
        Data::Scalar(value) => format!("`{value}`"),
    }
}
