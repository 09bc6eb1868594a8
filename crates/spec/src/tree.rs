//! A YAML document as a tree that remembers where each key and value stood. Untyped: no key is known here.

use std::fmt;

use indexmap::IndexMap;
use pleach_base::{Error, Result, code};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Budget, Options, Spanned};

/// Larger texts are no job files.
const MAX_BYTES: usize = 1 << 20;
/// Deeper nesting is no job file.
const MAX_DEPTH: usize = 48;

/// Where something stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Line and column of the text, from 1.
    Text { line: u64, column: u64 },
    /// A `--set` argument.
    Set(String),
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) data: Data,
}

/// A key's place and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Scalar(Value),
    List(Vec<Node>),
    Map(IndexMap<String, Entry>),
}

impl Node {
    /// The value without places.
    pub(crate) fn to_value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Data::Map(entries) => Value::Object(
                entries.iter().map(|(key, entry)| (key.clone(), entry.node.to_value())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// A tree whose every part stands at `place`.
    pub(crate) fn at_place(value: &Value, place: &Place) -> Self {
        let data = match value {
            Value::Array(items) => Data::List(items.iter().map(|item| Self::at_place(item, place)).collect()),
            Value::Object(map) => Data::Map(
                map.iter()
                    .map(|(key, value)| {
                        (key.clone(), Entry { key_place: place.clone(), node: Self::at_place(value, place) })
                    })
                    .collect(),
            ),
            scalar => Data::Scalar(scalar.clone()),
        };
        Self { place: place.clone(), data }
    }
}

/// Parses one YAML or JSON document. Depth, size and aliases are limited; booleans are `true` and `false` only.
pub(crate) fn parse(text: &str, origin: &str) -> Result<Node> {
    if text.len() > MAX_BYTES {
        return Err(code::JOB_SYNTAX
            .error(format!("{origin}: {} bytes are too many for a job file", text.len()))
            .hint("data belongs into the files that spec.data.source names; a job file is at most 1 MiB"));
    }
    let parsed: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| syntax_error(&error, origin))?;
    Ok(node(parsed))
}

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.flow_nesting_limit = MAX_DEPTH;
    budget.max_aliases = 256;
    budget.max_anchors = 256;
    budget.max_documents = 1;
    budget.max_nodes = 200_000;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = 50_000;
    options.alias_limits.max_replay_stack_depth = 8;
    options.strict_booleans = true;
    options.with_snippet = false;
    options
}

fn syntax_error(error: &serde_saphyr::Error, origin: &str) -> Error {
    let failure = code::JOB_SYNTAX.error(reason(error.without_snippet()));
    match error.location().filter(|place| place.line() > 0) {
        Some(place) => failure.at(format_args!("{origin}:{}:{}", place.line(), place.column())),
        None => failure.at(origin),
    }
}

/// The parser's reason, in our words where its own speak of its settings.
fn reason(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as Yaml;
    use serde_saphyr::budget::BudgetBreach;
    match error {
        Yaml::DuplicateMappingKey { key, .. } => {
            format!("the key `{}` stands twice in this map", key.as_deref().unwrap_or("?"))
        }
        Yaml::NonFiniteFloat { value, .. } => format!("`{value}` is not a finite number"),
        Yaml::MultipleDocuments { .. } | Yaml::Budget { breach: BudgetBreach::Documents { .. }, .. } => {
            "a second document begins; a job file holds one".into()
        }
        Yaml::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            format!("nested more than {MAX_DEPTH} levels deep")
        }
        Yaml::Budget { .. }
        | Yaml::AliasReplayCounterOverflow { .. }
        | Yaml::AliasReplayLimitExceeded { .. }
        | Yaml::AliasExpansionLimitExceeded { .. }
        | Yaml::AliasReplayStackDepthExceeded { .. } => "too many values or aliases for a job file".into(),
        // The parser repeats the position at the end of its message; ours stands in front.
        other => {
            let text = other.to_string();
            text.split(" at line ").next().unwrap_or_default().trim_end_matches([',', ':']).to_owned()
        }
    }
}

/// The tree as the parser builds it.
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn node(raw: Spanned<Raw>) -> Node {
    let data = match raw.value {
        Raw::Scalar(value) => Data::Scalar(value),
        Raw::List(items) => Data::List(items.into_iter().map(node).collect()),
        Raw::Map(entries) => Data::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key_place = place(key.referenced);
                    (key.value, Entry { key_place, node: node(value) })
                })
                .collect(),
        ),
    };
    Node { place: place(raw.referenced), data }
}

fn place(location: serde_saphyr::Location) -> Place {
    Place::Text { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        match Number::from_f64(value) {
            Some(number) => Ok(Raw::Scalar(Value::Number(number))),
            None => Err(E::custom("numbers must be finite")),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::String(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
