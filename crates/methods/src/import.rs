//! Adapter folders as PEFT writes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_base::{Result, ResultExt, code, suggest};
use pleach_nn::{HeadKind, HeadOptions, SiteId, TensorFile};
use serde_json::{Map, Value};

use crate::adapter::AdapterConfig;
use crate::around::INNER;
use crate::card::MethodKind;
use crate::plan::{Keep, Plan};
use crate::registry::{Method, find, methods};

/// The file of an adapter's options.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// The file of an adapter's tensors.
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter folder, opened.
#[derive(Debug)]
pub struct Imported {
    /// The method and its options.
    pub config: Arc<dyn AdapterConfig>,
    /// `base_model_name_or_path`, when it says one.
    pub base: Option<String>,
    /// `adapter_config.json` as it is.
    pub map: Map<String, Value>,
    file: TensorFile,
}

/// Opens an adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// `ADAPTER_FORMAT` naming the file or field, also for a `peft_type` that this build does not have; `SAFETENSORS` for a
/// damaged file; `UNKNOWN_KEY` or `METHOD_CONFIG` for options that the method refuses.
pub fn import(dir: &Path) -> Result<Imported> {
    let path = dir.join(CONFIG);
    let text = std::fs::read(&path).or_code(code::ADAPTER_FORMAT, || format!("{}: cannot be read", path.display()))?;
    let map = object(&text).map_err(|error| error.at(dir.display()))?;
    let base = map.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    let mut config = method_of(&map).and_then(|method| method.import(&map)).map_err(|error| error.at(dir.display()))?;
    let weights = dir.join(WEIGHTS);
    if !weights.is_file() {
        return Err(code::ADAPTER_FORMAT.error(format!("{}: no such file", weights.display())));
    }
    let file = TensorFile::open(&weights)?;
    let entries = file.names().filter_map(|name| file.get(name));
    config.see_file(&entries.map(|entry| (entry.name.to_owned(), entry.shape.to_vec())).collect());
    Ok(Imported { config: config.into(), base, map, file })
}

fn object(text: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(text).or_code(code::ADAPTER_FORMAT, || format!("{CONFIG}: not a JSON object"))
}

/// What a fuzzer calls: reads `data` as an `adapter_config.json`. Whatever the bytes, it is refused with a code or gives
/// the options of a method.
///
/// # Errors
/// As [`import`].
pub fn fuzz_adapter_config(data: &[u8]) -> Result<Arc<dyn AdapterConfig>> {
    let map = object(data)?;
    Ok(method_of(&map)?.import(&map)?.into())
}

pub(crate) fn method_of(map: &Map<String, Value>) -> Result<&'static dyn Method> {
    if let Some(name) = map.get("pleach_method").and_then(Value::as_str) {
        // What stands around an adapter is told from one by what it holds.
        let wrapped = map.get(INNER).is_some_and(Value::is_object);
        let around = methods().find(|method| method.card().kind != MethodKind::Adapter && method.card().name == name);
        if let Some(method) = around.filter(|method| wrapped || method.card().kind == MethodKind::Router) {
            return Ok(method);
        }
        return find(MethodKind::Adapter, name).map_err(|error| error.at("adapter_config.json"));
    }
    let missing = || code::ADAPTER_FORMAT.error("adapter_config.json: peft_type is missing");
    let name = map.get("peft_type").and_then(Value::as_str).ok_or_else(missing)?;
    let known = || methods().filter_map(|method| method.card().peft_type);
    methods().find(|method| method.card().peft_type == Some(name)).ok_or_else(|| {
        code::ADAPTER_FORMAT
            .error(format!("adapter_config.json: peft_type `{name}` is not one that this build reads"))
            .hint(suggest::did_you_mean(name, known().collect::<Vec<_>>()))
    })
}

impl Imported {
    /// The same options for an adapter that is made new: with the network that makes a prompt's table, which the file of
    /// a trained one leaves out.
    ///
    /// # Errors
    /// As [`import`].
    pub fn made_new(&self) -> Result<Arc<dyn AdapterConfig>> {
        Ok(method_of(&self.map)?.made_new(&self.map)?.into())
    }

    /// Compares the tensors of the file with a plan, by name and shape.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` naming the tensor.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        if self.config.encodes() {
            // Names and shapes are those of another form: they are checked when they are decoded.
            return Ok(());
        }
        let entries = self.file.names().filter_map(|name| self.file.get(name));
        check(plan, entries.map(|entry| (entry.name, entry.shape.to_vec())))
            .map_err(|error| error.at(self.file.path().display()))
    }

    /// The tensors of the file, by name, on the CPU.
    ///
    /// # Errors
    /// `SAFETENSORS` for elements of a kind that is not read; `ADAPTER_FORMAT` naming a tensor with a value that is not
    /// finite.
    #[cfg(feature = "torch")]
    pub fn values(&self) -> Result<BTreeMap<String, tch::Tensor>> {
        let mut values = BTreeMap::new();
        for entry in self.file.names().filter_map(|name| self.file.get(name)) {
            let at = |error: pleach_base::Error| error.at(self.file.path().display());
            let value = pleach_nn::tensor_from_entry(&entry).map_err(at)?;
            if value.isfinite().all().int64_value(&[]) == 0 {
                let message = format!("tensor `{}`: holds a value that is not finite", entry.name);
                return Err(at(code::ADAPTER_FORMAT.error(message)));
            }
            values.insert(entry.name.to_owned(), value);
        }
        Ok(values)
    }

    /// The head that the adapter was made for: by `task_type`, with as many classes as a classifier of its file has.
    /// What it does not say is the model's.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` for a `task_type` that this build does not have.
    pub fn head_options(&self) -> Result<HeadOptions> {
        let kind = match self.map.get("task_type").and_then(Value::as_str) {
            None => None,
            Some(name) => Some(HeadKind::of_task_type(name).ok_or_else(|| {
                code::ADAPTER_FORMAT
                    .error(format!("{CONFIG}: task_type `{name}` is not one that this build has"))
                    .at(self.file.path().parent().unwrap_or(Path::new("")).display())
            })?),
        };
        let classifies = matches!(kind, Some(HeadKind::SequenceClassification | HeadKind::TokenClassification));
        let rows = |name: &str| self.file.get(name).and_then(|entry| entry.shape.first().copied());
        let head = |name: &&str| HEADS.iter().any(|head| name.ends_with(head));
        // Where weights are coded their shapes are told beside them.
        let coded = self.map.get("coded").and_then(Value::as_object).into_iter().flatten();
        let told = coded.filter(|(name, _)| head(&name.as_str())).find_map(|(_, shape)| shape.get(0)?.as_u64());
        let found = || self.file.names().find(head).and_then(rows).or(told.map(|rows| rows as usize));
        let num_labels = if classifies { found() } else { None };
        Ok(HeadOptions { kind, num_labels, ..HeadOptions::default() })
    }
}

/// How the last layers of classifiers are called, when they are saved whole.
const HEADS: &[&str] = &[".classifier.weight", ".score.weight", ".classifier.out_proj.weight"];

/// The site whose frozen weight (or bias) a tensor is a copy of: PEFT stores one beside the adapter when the token table
/// or the output head is a target, and with `bias: all` those of modules that are saved whole.
pub(crate) fn frozen_copy(plan: &Plan, name: &str) -> Option<(SiteId, &'static str)> {
    if plan.named(name).is_some() {
        return None;
    }
    if name.contains(".original_module.") && name.ends_with(".bias") {
        return plan.named(&name.replace(".original_module.", ".")).map(|tensor| (tensor.site, "bias"));
    }
    let (module, part) = match name.strip_suffix(".base_layer.weight") {
        Some(module) => (module, "weight"),
        None => (name.strip_suffix(".base_layer.bias")?, "bias"),
    };
    let below = |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
    plan.tensors.iter().find(|tensor| below(&tensor.name)).map(|tensor| (tensor.site, part))
}

/// The planned name of a tensor of a module that is saved whole when PEFT wrote it a second time under `name`: with
/// `bias: all`, and where two modules share a bias, as the heads of masked models do.
#[must_use]
pub fn first_name(name: &str) -> Option<String> {
    if let Some((module, rest)) = name.split_once(".modules_to_save.") {
        return Some(format!("{module}.{}", rest.strip_prefix("default.").unwrap_or(rest)));
    }
    name.strip_suffix(".bias").map(|module| format!("{module}.decoder.bias"))
}

fn saved_twice(plan: &Plan, name: &str) -> bool {
    first_name(name).is_some_and(|first| plan.named(&first).is_some())
}

/// Whether a tensor is a module's copy of one that all modules share, such as `..q_proj.randlora_A` beside
/// `base_model.randlora_A`: PEFT writes RandLoRA's once a module.
fn is_shared_copy(plan: &Plan, name: &str) -> bool {
    let shared = plan.tensors.iter().filter(|tensor| tensor.keep == Keep::Saved);
    let mut last = shared.filter_map(|tensor| tensor.name.strip_prefix("base_model."));
    last.any(|last| !last.contains('.') && name.strip_suffix(last).is_some_and(|rest| rest.ends_with('.')))
}

/// Compares names and shapes with a plan.
pub(crate) fn check<'n>(plan: &Plan, found: impl Iterator<Item = (&'n str, Vec<usize>)>) -> Result<()> {
    let mut found: BTreeMap<_, _> = found.collect();
    for tensor in plan.tensors.iter().filter(|tensor| tensor.in_file()) {
        let (name, wanted) = (&tensor.name, &tensor.shape);
        match found.remove(name.as_str()) {
            None => return Err(code::ADAPTER_FORMAT.error(format!("tensor `{name}`: missing"))),
            Some(shape) if shape != *wanted => {
                return Err(
                    code::ADAPTER_FORMAT.error(format!("tensor `{name}`: expected {wanted:?}, found {shape:?}"))
                );
            }
            Some(_) => {}
        }
    }
    let known = |name: &str| frozen_copy(plan, name).is_some() || saved_twice(plan, name) || is_shared_copy(plan, name);
    match found.keys().find(|name| !known(name)) {
        Some(name) => Err(code::ADAPTER_FORMAT
            .error(format!("tensor `{name}`: not one of this adapter on this model"))
            .hint("the options in adapter_config.json do not lead to such a tensor; is it for another base model?")),
        None => Ok(()),
    }
}
