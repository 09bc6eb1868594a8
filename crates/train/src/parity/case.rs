//! The files of a case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pleach_base::{Error, Result, ResultExt as _, code};
use pleach_nn::{TensorFile, tensor_from_entry};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::Tensor;

/// Of trained tensors, when `case.json` does not say.
const TRAINED_ABS: f64 = 5e-3;
/// Of the first gradient norm, when `case.json` does not say.
const GRAD_NORM_REL: f64 = 1e-3;

/// A case, read but for its model and adapters.
pub(super) struct Case {
    pub(super) folder: PathBuf,
    pub(super) name: String,
    pub(super) task: String,
    pub(super) peft_type: String,
    pub(super) optimizer: Optimizer,
    pub(super) tolerance: Tolerance,
    /// Loss of each step.
    pub(super) losses: Vec<f64>,
    pub(super) grad_norm_step0: Option<f64>,
    io: BTreeMap<String, Tensor>,
}

/// `case.json`.
#[derive(Deserialize)]
struct CaseFile {
    case: String,
    task: String,
    peft_type: String,
    optimizer: Optimizer,
    tolerance: Tolerance,
}

/// How far off what was recorded a number may be.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tolerance {
    pub(super) logits_abs: f64,
    pub(super) loss_rel: f64,
    #[serde(default = "grad_norm_rel")]
    pub(super) grad_norm_rel: f64,
    #[serde(default = "trained_abs")]
    pub(super) trained_abs: f64,
}

fn grad_norm_rel() -> f64 {
    GRAD_NORM_REL
}

fn trained_abs() -> f64 {
    TRAINED_ABS
}

/// What the recorded steps were made with.
#[derive(Deserialize)]
pub(super) struct Optimizer {
    name: String,
    schedule: String,
    steps: usize,
    pub(super) lr: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_grad_norm: f64,
}

/// `train.json`.
#[derive(Deserialize)]
struct TrainFile {
    losses: Vec<f64>,
    grad_norm_step0: Option<f64>,
}

impl Case {
    /// Reads the folder's own files.
    ///
    /// # Errors
    /// `PARITY_CASE` naming the file; `SAFETENSORS` when the tensors are damaged.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let about: Value = json(folder, "case.json")?;
        let file: CaseFile = typed(folder, "case.json", about)?;
        let train: TrainFile = json(folder, "train.json")?;
        let case = Self {
            folder: folder.to_owned(),
            name: file.case,
            task: file.task,
            peft_type: file.peft_type,
            optimizer: file.optimizer,
            tolerance: file.tolerance,
            losses: train.losses,
            grad_norm_step0: train.grad_norm_step0,
            io: tensors(&folder.join("io.safetensors"))?,
        };
        case.check()?;
        Ok(case)
    }

    fn check(&self) -> Result<()> {
        let Optimizer { name, schedule, steps, .. } = &self.optimizer;
        let found = self.losses.len();
        match () {
            () if name != "AdamW" => Err(self.wrong("case.json", format!("optimizer `{name}` is not AdamW"))),
            () if schedule != "constant" => {
                Err(self.wrong("case.json", format!("schedule `{schedule}` is not constant")))
            }
            () if *steps != found => {
                Err(self.wrong("train.json", format!("{found} losses, and case.json says {steps} steps")))
            }
            () => Ok(()),
        }
    }

    /// An error about one of its files.
    pub(super) fn wrong(&self, file: &str, what: impl AsRef<str>) -> Error {
        wrong(&self.folder, file, what)
    }

    /// A recorded tensor, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.io.get(name)
    }

    /// A recorded tensor.
    ///
    /// # Errors
    /// `PARITY_CASE` naming the one that is missing.
    pub(super) fn need(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| self.wrong("io.safetensors", format!("tensor `{name}` is missing")))
    }

    /// The tensors of `adapter/` or `trained/`.
    pub(super) fn adapter(&self, which: &str) -> Result<BTreeMap<String, Tensor>> {
        tensors(&self.folder.join(which).join("adapter_model.safetensors"))
    }

    /// Whether the method took its own part in the recorded steps. PEFT leaves that to whoever trains, and a method that
    /// does it leaves the ranks that it chose in the options.
    pub(super) fn own_steps(&self) -> Result<bool> {
        let ranks = |which: &str| -> Result<Value> {
            let config: Value = json(&self.folder, &format!("{which}/adapter_config.json"))?;
            Ok(config.get("rank_pattern").cloned().unwrap_or_default())
        };
        Ok(ranks("adapter")? != ranks("trained")?)
    }
}

fn wrong(folder: &Path, file: &str, what: impl AsRef<str>) -> Error {
    code::PARITY_CASE.error(format!("{}: {}", folder.join(file).display(), what.as_ref()))
}

fn json<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<T> {
    let path = folder.join(file);
    let text = std::fs::read(&path).or_code(code::PARITY_CASE, || format!("{}: cannot be read", path.display()))?;
    let value = serde_json::from_slice(&text).or_code(code::PARITY_CASE, || format!("{}: not JSON", path.display()))?;
    typed(folder, file, value)
}

fn typed<T: DeserializeOwned>(folder: &Path, file: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| wrong(folder, file, error.to_string()))
}

pub(super) fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if !path.is_file() {
        return Err(code::PARITY_CASE.error(format!("{}: no such file", path.display())));
    }
    let file = TensorFile::open(path)?;
    let entries = file.names().filter_map(|name| file.get(name));
    entries.map(|entry| Ok((entry.name.to_owned(), tensor_from_entry(&entry)?))).collect()
}
