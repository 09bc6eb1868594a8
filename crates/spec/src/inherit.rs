//! A task's own `data` and `optimizer` say only what differs: the rest is that of the whole job.
//!
//! Null counts as absent, so that a stored job, which leaves empty options out, inherits the same when it is read again.

use indexmap::IndexMap;
use serde_json::Value;

use crate::tree::{Data, Entry, Node};

/// Fills absent keys of `spec.tasks[].data` and `spec.tasks[].optimizer`.
pub(crate) fn into_tasks(root: &mut Node) {
    let Some(spec) = child(root, "spec") else { return };
    let data = child(spec, "data").and_then(|node| map(node)).cloned().unwrap_or_default();
    let optimizer = child(spec, "train")
        .and_then(|train| child(train, "optimizer"))
        .and_then(|node| map(node))
        .cloned()
        .unwrap_or_default();
    let Some(Node { data: Data::List(tasks), .. }) = child(spec, "tasks") else { return };
    for task in tasks {
        for (key, shared) in [("data", &data), ("optimizer", &optimizer)] {
            if let Some(Node { data: Data::Map(own), .. }) = child(task, key) {
                fill(own, shared);
            }
        }
    }
}

fn fill(own: &mut IndexMap<String, Entry>, shared: &IndexMap<String, Entry>) {
    for (key, entry) in shared {
        let given = own.get(key).is_some_and(|own| !matches!(own.node.data, Data::Scalar(Value::Null)));
        if !given {
            own.insert(key.clone(), entry.clone());
        }
    }
}

fn map(node: &Node) -> Option<&IndexMap<String, Entry>> {
    match &node.data {
        Data::Map(entries) => Some(entries),
        _ => None,
    }
}

fn child<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    match &mut node.data {
        Data::Map(entries) => entries.get_mut(key).map(|entry| &mut entry.node),
        _ => None,
    }
}
