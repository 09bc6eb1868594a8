//! Adapter folders as PEFT writes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pleach_base::{Result, ResultExt, code, suggest};
use pleach_nn::{SiteId, TensorFile};
use serde_json::{Map, Value};

use crate::adapter::AdapterConfig;
use crate::card::MethodKind;
use crate::plan::{Keep, Plan};
use crate::registry::{Method, find, methods};

/// An adapter folder, opened.
#[derive(Debug)]
pub struct Imported {
    /// The method and its options.
    pub config: Arc<dyn AdapterConfig>,
    /// `base_model_name_or_path`, when it says one.
    pub base: Option<String>,
    said: Map<String, Value>,
    file: TensorFile,
}

/// Opens an adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// `ADAPTER_FORMAT` naming the file or field, also for a `peft_type` that this build does not have; `SAFETENSORS` for a
/// damaged file; `UNKNOWN_KEY` or `METHOD_CONFIG` for options that the method refuses.
pub fn import(dir: &Path) -> Result<Imported> {
    let path = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&path)
        .or_code(code::ADAPTER_FORMAT, || format!("{}: cannot be read", path.display()))?;
    let map: Map<String, Value> = serde_json::from_str(&text)
        .or_code(code::ADAPTER_FORMAT, || format!("{}: not a JSON object", path.display()))?;
    let base = map.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    let mut config = method_of(&map).and_then(|method| method.import(&map)).map_err(|error| error.at(dir.display()))?;
    let weights = dir.join("adapter_model.safetensors");
    if !weights.is_file() {
        return Err(code::ADAPTER_FORMAT.error(format!("{}: no such file", weights.display())));
    }
    let file = TensorFile::open(&weights)?;
    let entries = file.names().filter_map(|name| file.get(name));
    config.see_file(&entries.map(|entry| (entry.name.to_owned(), entry.shape.to_vec())).collect());
    Ok(Imported { config: config.into(), base, said: map, file })
}

fn method_of(map: &Map<String, Value>) -> Result<&'static dyn Method> {
    if let Some(name) = map.get("pleach_method").and_then(Value::as_str) {
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
        Ok(method_of(&self.said)?.made_new(&self.said)?.into())
    }

    /// Compares the tensors of the file with a plan, by name and shape.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` naming the tensor.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let entries = self.file.names().filter_map(|name| self.file.get(name));
        check(plan, entries.map(|entry| (entry.name, entry.shape.to_vec())))
            .map_err(|error| error.at(self.file.path().display()))
    }

    /// The tensors of the file, by name, on the CPU.
    ///
    /// # Errors
    /// `SAFETENSORS` for elements of a kind that is not read.
    #[cfg(feature = "torch")]
    pub fn values(&self) -> Result<BTreeMap<String, tch::Tensor>> {
        let entries = self.file.names().filter_map(|name| self.file.get(name));
        entries.map(|entry| Ok((entry.name.to_owned(), pleach_nn::tensor_from_entry(&entry)?))).collect()
    }
}

/// The site whose frozen weight (or bias) a tensor is a copy of: PEFT stores one beside the adapter when the token table
/// or the output head is a target, and with `bias: all` those of modules that are saved whole.
pub(crate) fn frozen_copy(plan: &Plan, name: &str) -> Option<(SiteId, &'static str)> {
    if plan.named(name).is_some() {
        return None;
    }
    if let Some(module) = name.strip_suffix(".original_module.bias") {
        return plan.named(&format!("{module}.bias")).map(|tensor| (tensor.site, "bias"));
    }
    let (module, part) = match name.strip_suffix(".base_layer.weight") {
        Some(module) => (module, "weight"),
        None => (name.strip_suffix(".base_layer.bias")?, "bias"),
    };
    let below = |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
    plan.tensors.iter().find(|tensor| below(&tensor.name)).map(|tensor| (tensor.site, part))
}

/// Whether PEFT wrote a tensor of a module that is saved whole a second time, as it does with `bias: all`.
fn saved_twice(plan: &Plan, name: &str) -> bool {
    let module = name.strip_suffix(".modules_to_save.bias");
    module.is_some_and(|module| plan.named(&format!("{module}.bias")).is_some())
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
