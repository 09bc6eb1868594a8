//! From the words of a job to experts.

use std::path::{Path, PathBuf};

use pleach_base::{Result, ResultExt, cache_folder, code};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Source, copy_name, new_child};
use crate::adapter::common::refuse;
use crate::adapter::compose::Child;
use crate::import::{CONFIG, WEIGHTS, method_of};

/// An expert: its adapter, and where that came from.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Its adapter.
    pub child: Child,
    /// Where it came from.
    pub source: Source,
}

impl Expert {
    /// New copies of one adapter.
    #[must_use]
    pub fn copies(method: &str, options: &Map<String, Value>, count: usize) -> Vec<Self> {
        let copy = |index| Self::new(new_child(copy_name(index), method, options), "copy", String::new());
        (0..count).map(copy).collect()
    }

    /// The adapter of another task of the job, whose values come when that task is done.
    #[must_use]
    pub fn of_task(task: &str, method: &str, options: &Map<String, Value>) -> Self {
        Self::new(new_child(task.to_owned(), method, options), &format!("task {task}"), String::new())
    }

    /// What is there already: a local folder, or a published step that was fetched ([`fetched`]).
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when it is no adapter, or was not fetched.
    pub fn of_address(number: usize, address: &str) -> Result<Self> {
        if !is_remote(address) {
            return Self::of_folder(copy_name(number), Path::new(address), address);
        }
        let folder = fetched(address)?;
        if !folder.is_dir() {
            return Err(code::ADAPTER_FORMAT.error(format!("`{address}` was not fetched to {}", folder.display())));
        }
        Self::of_folder(copy_name(number), &folder, address)
    }

    /// An adapter folder. `from` is what the job calls it.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when it is none.
    pub fn of_folder(name: String, folder: &Path, from: &str) -> Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).or_code(code::ADAPTER_FORMAT, || format!("{}: cannot be read", path.display()))
        };
        let fields: Map<String, Value> = serde_json::from_slice(&read(CONFIG)?)
            .or_code(code::ADAPTER_FORMAT, || format!("{}: {CONFIG}: not a JSON object", folder.display()))?;
        let method = method_of(&fields).map_err(|error| error.at(folder.display()))?.card().name.to_owned();
        let (sha256, folder) = (hex::encode(Sha256::digest(read(WEIGHTS)?)), folder.display().to_string());
        let child = Child { init_from: Some(folder), saved: true, ..new_child(name, &method, &fields) };
        Ok(Self::new(child, from, sha256))
    }

    fn new(child: Child, from: &str, file_sha256: String) -> Self {
        let (name, method, from) = (child.name.clone(), child.method.clone(), from.to_owned());
        Self { child, source: Source { name, method, from, file_sha256, sha256: String::new() } }
    }
}

/// Whether an expert's address is one of a store rather than a folder.
#[must_use]
pub fn is_remote(address: &str) -> bool {
    address.contains("://")
}

/// Where a published step lies on this machine once it was fetched.
///
/// # Errors
/// `METHOD_CONFIG` for an address that does not name one step: what is newest changes.
pub fn fetched(address: &str) -> Result<PathBuf> {
    let mut parts = address.trim_end_matches('/').rsplit('/');
    let (folder, steps) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if steps != "steps" || folder.is_empty() {
        return Err(refuse("experts", &format!("`{address}` does not name a step"))
            .hint("give the folder of one step, such as s3://bucket/acme/job/task/steps/00001000-g0007"));
    }
    let name = hex::encode(Sha256::digest(address.trim_end_matches('/')));
    let folder = cache_folder("experts").unwrap_or_else(|| std::env::temp_dir().join("pleach/experts"));
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_one_step() {
        let step = "s3://bucket/acme/job/task/steps/00001000-g0007";
        assert_eq!(fetched(step).unwrap(), fetched(&format!("{step}/")).unwrap());
        assert_ne!(fetched(step).unwrap(), fetched(&step.replace("7", "8")).unwrap());
        let error = fetched("s3://bucket/acme/job/task").unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG);
    }
}
