//! A method's page, from its card and the schema of its options.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::registry::Method;

/// One option of a method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Type, as the schema says it.
    pub kind: String,
    /// Value when left out, as JSON.
    pub default: String,
    /// What it does.
    pub description: String,
}

/// The options of a method, in order.
#[must_use]
pub fn fields(method: &dyn Method) -> Vec<Field> {
    let schema = method.schema().to_value();
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let field = |(name, property): (&String, &Value)| {
        let mut kinds = Vec::new();
        kinds_of(&schema, property, &mut kinds);
        Field {
            name: name.clone(),
            kind: kinds.join(" or "),
            default: property.get("default").map_or_else(|| "null".to_owned(), Value::to_string),
            description: property["description"].as_str().unwrap_or_default().replace('\n', " "),
        }
    };
    properties.iter().map(field).collect()
}

/// What a value may be, each once, without null: that is what "left out" means.
fn kinds_of(root: &Value, schema: &Value, kinds: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return kinds_of(root, &root["$defs"][name], kinds);
    }
    if let Some(value) = schema.get("const") {
        return push(kinds, value.as_str().unwrap_or(&value.to_string()));
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().filter_map(Value::as_str).for_each(|word| push(kinds, word));
    }
    for choice in ["anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten() {
        kinds_of(root, choice, kinds);
    }
    match &schema["type"] {
        Value::String(name) => push(kinds, name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).for_each(|name| push(kinds, name)),
        _ => {}
    }
}

fn push(kinds: &mut Vec<String>, name: &str) {
    if name != "null" && !kinds.iter().any(|kind| kind == name) {
        kinds.push(name.to_owned());
    }
}

/// The page of a method in Markdown.
#[must_use]
pub fn explain(method: &dyn Method) -> String {
    let card = method.card();
    let mut page = format!("# {} (`{}`)\n\n{}\n\n{}\n\n", card.title, card.name, card.summary, card.formula);
    let roles: Vec<_> = card.roles.iter().map(ToString::to_string).collect();
    let sync: Vec<_> = card.sync.iter().map(|sync| format!("{sync:?}")).collect();
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let rows = [
        ("Kind", card.kind.to_string()),
        ("Status", format!("{:?}", card.status).to_lowercase()),
        ("Acts on", roles.join(", ")),
        ("Data-parallel contract", sync.join(", ")),
        ("Can be merged", yes_no(card.mergeable).to_owned()),
        ("Identity at the start", yes_no(card.identity_at_init).to_owned()),
        ("PEFT type", card.peft_type.unwrap_or("none").to_owned()),
        ("Paper", card.paper.to_owned()),
    ];
    for (name, value) in rows {
        let _ = writeln!(page, "- {name}: {value}");
    }
    page.push_str("\n## Options\n\n| name | type | default | meaning |\n|---|---|---|---|\n");
    for Field { name, kind, default, description } in fields(method) {
        let _ = writeln!(page, "| `{name}` | {kind} | `{default}` | {} |", description.replace('|', "\\|"));
    }
    let _ = write!(page, "\n## A job\n\n```yaml\n{}```\n", card.sample_job);
    page
}
