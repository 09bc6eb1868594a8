//! A model folder: `config.json` and weights in one or several safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pleach_base::{Result, ResultExt, code};
use serde_json::{Map, Value};

use super::file::{Entry, TensorFile};
use super::fingerprint;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model folder. Weights are mapped, not read; configuration alone can be had without them ([`ModelDir::config_only`]).
#[derive(Debug)]
pub struct ModelDir {
    path: PathBuf,
    config: Map<String, Value>,
    files: Vec<TensorFile>,
    by_name: BTreeMap<String, usize>,
    /// What the files have in front of the names.
    prefix: String,
}

impl ModelDir {
    /// Opens a folder and checks the headers of its weights.
    ///
    /// # Errors
    /// `MODEL_MISSING` naming the file that is not there, `MODEL_CONFIG` when `config.json` cannot be read,
    /// `SAFETENSORS` for damaged weights, `MODEL_MISMATCH` when a shard lacks a tensor that the index puts there.
    pub fn open(path: &Path) -> Result<Self> {
        let mut dir = Self::config_only(path)?;
        let (names, index) = shards(path)?;
        for (number, name) in names.iter().enumerate() {
            let file = TensorFile::open(&path.join(name))?;
            dir.by_name.extend(file.names().map(|tensor| (tensor.to_owned(), number)));
            dir.files.push(file);
        }
        if let Some((tensor, file)) = index.iter().find(|(tensor, _)| !dir.by_name.contains_key(*tensor)) {
            return Err(code::MODEL_MISMATCH
                .error(format!("{}: tensor `{tensor}` should be in {file}, and is not", path.join(INDEX).display())));
        }
        Ok(dir)
    }

    /// Reads `config.json` and leaves the weights alone: enough to plan.
    ///
    /// # Errors
    /// `MODEL_MISSING` or `MODEL_CONFIG`.
    pub fn config_only(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(code::MODEL_MISSING
                .error(format!("{}: no such model folder", path.display()))
                .hint("spec.backbone.path is a folder with config.json and model.safetensors"));
        }
        let config = read_json(&path.join(CONFIG))?;
        Ok(Self { path: path.to_owned(), ..Self::of_config(config) })
    }

    /// A configuration without a folder and without weights: enough to plan.
    #[must_use]
    pub fn of_config(config: Map<String, Value>) -> Self {
        Self { path: PathBuf::new(), config, files: Vec::new(), by_name: BTreeMap::new(), prefix: String::new() }
    }

    /// A configuration with weights out of a file that holds them among others, with `prefix` in front of their names.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn of_file(config: Map<String, Value>, path: &Path, prefix: &str) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let by_name = file.names().filter_map(|name| Some((name.strip_prefix(prefix)?.to_owned(), 0))).collect();
        Ok(Self { path: path.to_owned(), config, files: vec![file], by_name, prefix: prefix.to_owned() })
    }

    /// The same with the weights of one more file.
    #[must_use]
    pub fn with_weights(mut self, file: TensorFile) -> Self {
        let number = self.files.len();
        self.by_name.extend(file.names().map(|tensor| (tensor.to_owned(), number)));
        self.files.push(file);
        self
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Another JSON object of the folder, if it is there.
    ///
    /// # Errors
    /// `MODEL_CONFIG` when it is there and cannot be read.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>> {
        let path = self.path.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&path).or_code(code::IO, || format!("{}: cannot be read", path.display()))?;
        let value =
            serde_json::from_str(&text).or_code(code::MODEL_CONFIG, || format!("{}: not JSON", path.display()))?;
        Ok(Some(value))
    }

    /// Names of all tensors in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let file = &self.files[*self.by_name.get(name)?];
        if self.prefix.is_empty() { file.get(name) } else { file.get(&format!("{}{name}", self.prefix)) }
    }

    /// The files of the weights, in order of names.
    #[must_use]
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// SHA-256 over name, kind, shape and bytes of every tensor in order of names, in hexadecimal: the same for one
    /// file and for shards. Remembered in the user's cache folder while the files' sizes and times stay.
    ///
    /// # Errors
    /// `IO` when a file's size or time cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        self.fingerprint_in(pleach_base::cache_folder("fingerprints").as_deref())
    }

    /// [`ModelDir::fingerprint`], remembered in a folder of the caller's choice or nowhere.
    ///
    /// # Errors
    /// As [`ModelDir::fingerprint`].
    pub fn fingerprint_in(&self, cache: Option<&Path>) -> Result<String> {
        fingerprint::of(self, cache)
    }
}

/// File names of the weights, and what the index says of tensors.
fn shards(path: &Path) -> Result<(BTreeSet<String>, BTreeMap<String, String>)> {
    if path.join(WEIGHTS).is_file() {
        return Ok((BTreeSet::from([WEIGHTS.to_owned()]), BTreeMap::new()));
    }
    let index = path.join(INDEX);
    if !index.is_file() {
        return Err(code::MODEL_MISSING
            .error(format!("{}: no such file", path.join(WEIGHTS).display()))
            .hint(format!("the folder needs {WEIGHTS}, or {INDEX} and its shards")));
    }
    let bad = |why: &str| code::MODEL_CONFIG.error(format!("{}: {why}", index.display()));
    let json = read_json(&index)?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("weight_map is missing"))?;
    let mut index = BTreeMap::new();
    for (tensor, file) in map {
        let file =
            file.as_str().filter(|file| !file.contains(['/', '\\'])).ok_or_else(|| bad("a shard is no file name"))?;
        index.insert(tensor.clone(), file.to_owned());
    }
    Ok((index.values().cloned().collect(), index))
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { code::MODEL_MISSING } else { code::IO };
        code.error(format!("{}: cannot be read", path.display())).caused_by(error)
    })?;
    serde_json::from_str(&text).or_code(code::MODEL_CONFIG, || format!("{}: not a JSON object", path.display()))
}

#[cfg(test)]
mod tests;
