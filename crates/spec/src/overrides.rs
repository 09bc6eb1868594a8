//! `--set path.to.key=value`, applied to the untyped document, so that the schema judges the result.

use indexmap::IndexMap;
use pleach_base::{Error, Result, code};

use crate::tree::{self, Data, Entry, Node, Place};

/// Applies one argument. Missing maps are created; a list takes an index up to its length (one past the end appends).
pub(crate) fn apply(root: &mut Node, argument: &str) -> Result<()> {
    let (path, text) = argument
        .split_once('=')
        .ok_or_else(|| refuse(argument, "no `=` in it").hint("write `--set path.to.key=value`"))?;
    let steps = steps(path).ok_or_else(|| {
        refuse(argument, "the path has an empty or malformed step").hint("for example spec.tasks[0].adapter.r=16")
    })?;
    let value = tree::parse(text, "value").map_err(|error| {
        refuse(argument, "the value is not YAML").hint("quote it: --set 'key=\"text\"'").caused_by(error)
    })?;
    let place = Place::Set(argument.to_owned());
    let mut node = root;
    for step in &steps {
        node = descend(node, step, &place, argument)?;
    }
    *node = Node::at_place(&value.to_value(), &place);
    Ok(())
}

fn refuse(argument: &str, why: &str) -> Error {
    code::BAD_OVERRIDE.error(format!("--set {argument}: {why}"))
}

/// `a.b[0].c` and `a.b.0.c` alike; none when a step is empty or a bracket does not close.
fn steps(path: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for part in path.split('.') {
        let (name, mut rest) = match part.find('[') {
            Some(at) => part.split_at(at),
            None => (part, ""),
        };
        if !name.is_empty() {
            out.push(name.trim().to_owned());
        } else if rest.is_empty() || out.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
            index.parse::<usize>().ok()?;
            out.push(index.to_owned());
            rest = after;
        }
    }
    out.iter().all(|step| !step.is_empty()).then_some(out)
}

fn descend<'a>(node: &'a mut Node, step: &str, place: &Place, argument: &str) -> Result<&'a mut Node> {
    let empty = || Node { place: place.clone(), data: Data::Scalar(serde_json::Value::Null) };
    if matches!(node.data, Data::Scalar(serde_json::Value::Null)) {
        node.data = Data::Map(IndexMap::new());
    }
    match &mut node.data {
        Data::Map(entries) => {
            let entry =
                entries.entry(step.to_owned()).or_insert_with(|| Entry { key_place: place.clone(), node: empty() });
            Ok(&mut entry.node)
        }
        Data::List(items) => {
            let known = items.len();
            let index: usize = step
                .parse()
                .map_err(|_| refuse(argument, &format!("`{step}` steps into a list")).hint("use an index, from 0"))?;
            if index > known {
                return Err(refuse(argument, &format!("index {index} is past the end"))
                    .hint(format!("the list has {known}; index {known} appends")));
            }
            if index == known {
                items.push(empty());
            }
            Ok(&mut items[index])
        }
        Data::Scalar(value) => {
            Err(refuse(argument, &format!("`{step}` steps into the value `{value}`")).hint("check the path"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, argument: &str) -> Result<String> {
        let mut root = tree::parse(text, "t")?;
        apply(&mut root, argument)?;
        Ok(root.to_value().to_string())
    }

    #[test]
    fn paths_reach_maps_and_lists_and_create_what_is_missing() {
        let text = "a: {b: 1}\nlist: [x, {y: 2}]";
        assert_eq!(set(text, "a.b=2e-4").unwrap(), r#"{"a":{"b":0.0002},"list":["x",{"y":2}]}"#);
        assert_eq!(set(text, "list[1].y=[1, two]").unwrap(), r#"{"a":{"b":1},"list":["x",{"y":[1,"two"]}]}"#);
        assert_eq!(set(text, "list.2=z").unwrap(), r#"{"a":{"b":1},"list":["x",{"y":2},"z"]}"#);
        assert_eq!(set("a:", "a.n.m=s3://x/y=z").unwrap(), r#"{"a":{"n":{"m":"s3://x/y=z"}}}"#);
    }

    #[test]
    fn what_cannot_be_applied_is_refused_with_the_argument() {
        for (argument, why) in [
            ("a.b", "no `=` in it"),
            (".a=1", "the path has an empty or malformed step"),
            ("a..b=1", "the path has an empty or malformed step"),
            ("list[1=1", "the path has an empty or malformed step"),
            ("list.5=1", "index 5 is past the end"),
            ("list.y=1", "`y` steps into a list"),
            ("a.b.c=1", "`c` steps into the value `1`"),
            ("a.b=[1", "the value is not YAML"),
        ] {
            let error = set("a: {b: 1}\nlist: [x]", argument).unwrap_err();
            assert_eq!(error.code(), code::BAD_OVERRIDE, "{argument}");
            assert_eq!(error.message(), format!("--set {argument}: {why}"));
            assert!(error.hint_text().is_some(), "{argument}");
        }
    }
}
