//! Where each path of a document stood, to put `job.yaml:12:5:` in front of errors that name a path.

use std::collections::BTreeMap;

use pleach_base::{Error, code};

use crate::tree::{Data, Node, Place};

/// The places of a loaded document, by path (`spec.tasks[0].adapter.r`).
#[derive(Clone, Debug, Default)]
pub struct Places {
    origin: String,
    by_path: BTreeMap<String, (Place, Place)>,
}

impl Places {
    pub(crate) fn of(root: &Node, origin: &str) -> Self {
        let mut places = Self { origin: origin.to_owned(), by_path: BTreeMap::new() };
        places.collect(root, &root.place, String::new());
        places
    }

    fn collect(&mut self, node: &Node, key_place: &Place, path: String) {
        match &node.data {
            Data::Scalar(_) => {}
            Data::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.collect(item, &item.place, format!("{path}[{index}]"));
                }
            }
            Data::Map(entries) => {
                for (key, entry) in entries {
                    self.collect(&entry.node, &entry.key_place, join(&path, key));
                }
            }
        }
        self.by_path.insert(path, (key_place.clone(), node.place.clone()));
    }

    /// Puts the place of the path at the head of the error's message in front of it. A path that does not stand in the
    /// document takes the place of its nearest parent that does; a message without a path stays as it is.
    #[must_use]
    pub fn locate(&self, error: Error) -> Error {
        let head = error.message().split(": ").next().unwrap_or_default().to_owned();
        if !self.by_path.contains_key(&head) && !is_path(&head) {
            return error;
        }
        let mut path = head.as_str();
        loop {
            if let Some((key, value)) = self.by_path.get(path) {
                let place = if error.code() == code::UNKNOWN_KEY { key } else { value };
                return error.at(self.show(place));
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return error.at(&self.origin),
            }
        }
    }

    fn show(&self, place: &Place) -> String {
        match place {
            Place::Text { line, column } if *line > 0 => format!("{}:{line}:{column}", self.origin),
            Place::Text { .. } => self.origin.clone(),
            Place::Set(argument) => format!("--set {argument}"),
        }
    }
}

/// Whether a message of another crate starts with a path of a job.
fn is_path(head: &str) -> bool {
    let first = head.split(['.', '[']).next().unwrap_or_default();
    matches!(first, "spec" | "metadata" | "apiVersion" | "kind") && !head.contains(' ')
}

/// `parent.key`; keys with odd characters are quoted.
pub(crate) fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-/".contains(c));
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key:?}]"),
    }
}
