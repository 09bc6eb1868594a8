//! The files of a recording.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pleach_base::{Error, Result, ResultExt as _, code};
use pleach_nn::{TensorFile, tensor_from_entry};
use pleach_spec::job::OptimizerSpec;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::Tensor;

/// The number that stands for routers, which have no page of their own.
pub(super) const ROUTERS: u32 = 0;

/// Key of the optimiser among the options.
const OPTIMIZER: &str = "optimizer";

/// A recording, read.
pub struct Recording {
    /// Number of the page.
    pub page: u32,
    /// The page's method.
    pub method: String,
    /// Name of the case.
    pub case: String,
    /// What was recorded.
    pub kind: String,
    /// The page's options.
    pub(super) config: Map<String, Value>,
    pub(super) tolerance: Map<String, Value>,
    /// Sizes, for pages that cannot tell them from the tensors.
    pub(super) shapes: Map<String, Value>,
    file: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors that were asked for.
    used: RefCell<BTreeSet<String>>,
}

/// `case.json`. What it says for people (`source`, `notes`, ...) is not read.
#[derive(Deserialize)]
struct About {
    page: PageName,
    method: String,
    case: String,
    kind: String,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    shapes: Map<String, Value>,
    tolerance: Map<String, Value>,
}

/// What `page` says: a number, or the word for routers.
#[derive(Deserialize)]
#[serde(untagged)]
enum PageName {
    Number(u32),
    Word(String),
}

impl PageName {
    fn number(self) -> Result<u32> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Word(word) if word == "router" => Ok(ROUTERS),
            Self::Word(word) => Err(wrong(format!("page: neither a number nor `router`, but `{word}`"))),
        }
    }
}

/// An error about `case.json`.
pub(super) fn wrong(what: impl Into<String>) -> Error {
    code::PARITY_CASE.error(format!("case.json: {}", what.into()))
}

/// An error about `io.safetensors`.
pub(super) fn bad(what: impl Into<String>) -> Error {
    code::PARITY_CASE.error(format!("io.safetensors: {}", what.into()))
}

/// `case.json` as it is.
pub(super) fn about(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("case.json");
    let text = std::fs::read(&path).or_code(code::PARITY_CASE, || format!("{}: cannot be read", path.display()))?;
    serde_json::from_slice(&text).or_code(code::PARITY_CASE, || format!("{}: is not a JSON object", path.display()))
}

impl Recording {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let about: About = serde_json::from_value(Value::Object(about(folder)?))
            .map_err(|error| wrong("is not of the expected layout").caused_by(error))?;
        let path = folder.join("io.safetensors");
        let file = TensorFile::open(&path)?;
        let mut tensors = BTreeMap::new();
        for entry in file.names().filter_map(|name| file.get(name)) {
            tensors.insert(entry.name.to_owned(), tensor_from_entry(&entry)?);
        }
        let About { page, method, case, kind, config, tolerance, shapes } = about;
        let (page, used) = (page.number()?, RefCell::default());
        Ok(Self { page, method, case, kind, config, tolerance, shapes, file: path, tensors, used })
    }

    /// The options under these names, typed, and the rest but for the optimiser, which are those of the method.
    ///
    /// # Errors
    /// `PARITY_CASE` naming the option.
    pub(super) fn split<T: DeserializeOwned>(&self, names: &[&str]) -> Result<(T, Map<String, Value>)> {
        let all = self.config.clone().into_iter().filter(|(name, _)| name != OPTIMIZER);
        let (own, rest): (Map<_, _>, Map<_, _>) = all.partition(|(name, _)| names.contains(&name.as_str()));
        let own = serde_json::from_value(Value::Object(own))
            .map_err(|error| wrong("config: cannot be used").caused_by(error))?;
        Ok((own, rest))
    }

    /// What `shapes` says under this name, where no tensor says it.
    ///
    /// # Errors
    /// `PARITY_CASE` when it is missing or of another type.
    pub(super) fn shape<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.shapes.get(name).cloned().ok_or_else(|| wrong(format!("shapes.{name} is missing")))?;
        serde_json::from_value(value).map_err(|error| wrong(format!("shapes.{name}: cannot be used")).caused_by(error))
    }

    /// The optimiser of a training: `config.optimizer`, its name in any case.
    ///
    /// # Errors
    /// `PARITY_CASE` when it is missing or not one of ours.
    pub(super) fn optimizer(&self) -> Result<OptimizerSpec> {
        self.optimizer_and(&[]).map(|(spec, _)| spec)
    }

    /// The same, and what it says under these names, which are the page's business: schedules, limits of the gradient.
    ///
    /// # Errors
    /// As [`Recording::optimizer`].
    pub(super) fn optimizer_and(&self, names: &[&str]) -> Result<(OptimizerSpec, Map<String, Value>)> {
        let fields = self.config.get(OPTIMIZER).and_then(Value::as_object).cloned();
        let fields = fields.ok_or_else(|| wrong("config.optimizer is missing"))?;
        let (more, mut own): (Map<_, _>, Map<_, _>) =
            fields.into_iter().partition(|(name, _)| names.contains(&name.as_str()));
        if let Some(Value::String(name)) = own.get_mut("name") {
            name.make_ascii_lowercase();
        }
        let spec = serde_json::from_value(Value::Object(own))
            .map_err(|error| wrong("config.optimizer: cannot be used").caused_by(error))?;
        Ok((spec, more))
    }

    /// The file of its tensors.
    #[must_use]
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// `PARITY_CASE` when it is not there.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.find(name).ok_or_else(|| bad(format!("{name} is missing")))
    }

    /// The same where it may be missing.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Tensor> {
        let found = self.tensors.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(found.shallow_clone())
    }

    /// A copy of a tensor that gradients are wanted of.
    ///
    /// # Errors
    /// As [`Recording::get`].
    pub fn leaf(&self, name: &str) -> Result<Tensor> {
        Ok(self.get(name)?.detach().copy().set_requires_grad(true))
    }

    /// Names that begin with `prefix`, in order, without it.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    /// Parameters that no page's code has asked for.
    pub(super) fn unused_parameters(&self) -> Vec<String> {
        let used = self.used.borrow();
        let unused = self.tensors.keys().filter(|name| name.starts_with("param.") && !used.contains(*name));
        unused.cloned().collect()
    }
}
