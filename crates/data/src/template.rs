//! Text templates: `"{prompt}\n{answer}"`.

use std::fmt;

use pleach_base::{Result, code};
use serde_json::{Map, Value};

use crate::row::Fault;

/// A compiled template: literal text and `{field}` look-ups; `{{` and `}}` are literal braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(String),
}

impl Template {
    /// Compiles a template. `at` is the job's field that holds it, for messages.
    ///
    /// # Errors
    /// `BAD_VALUE` for a brace without its partner, an empty field name, or a template without any field.
    pub fn parse(source: &str, at: &str) -> Result<Self> {
        let refuse = |why: String| {
            Err(code::BAD_VALUE
                .error(format!("{at}: {why} in the template {source:?}"))
                .hint("write `{field}` for a field of the row, `{{` and `}}` for braces"))
        };
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut rest = source;
        while let Some(brace) = rest.find(['{', '}']) {
            literal.push_str(&rest[..brace]);
            let (open, tail) = (rest[brace..].starts_with('{'), &rest[brace + 1..]);
            if tail.starts_with(if open { '{' } else { '}' }) {
                literal.push(if open { '{' } else { '}' });
                rest = &tail[1..];
                continue;
            }
            if !open {
                return refuse("`}` without `{`".into());
            }
            let Some(end) = tail.find(['}', '{']).filter(|end| tail[*end..].starts_with('}')) else {
                return refuse("`{` without `}`".into());
            };
            if tail[..end].trim().is_empty() {
                return refuse("a field without a name".into());
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Field(tail[..end].to_owned()));
            rest = &tail[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if !parts.iter().any(|part| matches!(part, Part::Field(_))) {
            return refuse("no field at all".into());
        }
        Ok(Self { source: source.to_owned(), parts })
    }

    /// `{name}`.
    pub(crate) fn field(name: &str) -> Self {
        Self { source: format!("{{{name}}}"), parts: vec![Part::Field(name.to_owned())] }
    }

    /// The fields that a row must have, in order of appearance.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// The text of a row.
    pub(crate) fn render(&self, row: &Map<String, Value>) -> Result<String, Fault> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Field(name) => push_value(&mut text, name, row)?,
            }
        }
        Ok(text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

fn push_value(text: &mut String, name: &str, row: &Map<String, Value>) -> Result<(), Fault> {
    let value = row.get(name).ok_or_else(|| missing(name, row))?;
    match value {
        Value::String(string) => text.push_str(string),
        Value::Number(_) | Value::Bool(_) => text.push_str(&value.to_string()),
        Value::Null => return Err(Fault::row(format!("field `{name}` is null"))),
        Value::Array(_) => return Err(Fault::row(format!("field `{name}` is an array, not text"))),
        Value::Object(_) => return Err(Fault::row(format!("field `{name}` is an object, not text"))),
    }
    Ok(())
}

/// The fault of a row without a field, with the nearest name that the row has.
pub(crate) fn missing(name: &str, row: &Map<String, Value>) -> Fault {
    let near = pleach_base::suggest::nearest(name, row.keys().map(String::as_str));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Fault::row(format!("field `{name}` is missing{hint}"))
}
