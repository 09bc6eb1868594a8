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
    let schema = method.schema();
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Vec::new() };
    let field = |(name, property): (&String, &Value)| Field {
        name: name.clone(),
        kind: kind_of(property),
        default: property.get("default").map_or_else(|| "null".to_owned(), Value::to_string),
        description: property["description"].as_str().unwrap_or_default().replace('\n', " "),
    };
    properties.iter().map(field).collect()
}

fn kind_of(property: &Value) -> String {
    match &property["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names: Vec<_> = names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect();
            names.join(" or ")
        }
        _ => match property["anyOf"].as_array() {
            Some(_) => "see below".to_owned(),
            None => "any".to_owned(),
        },
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
