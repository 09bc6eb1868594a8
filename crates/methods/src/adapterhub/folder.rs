//! AdapterHub's folders with tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use pleach_base::{Result, ResultExt, code, rng};
use pleach_nn::{Backbone, BackboneConfig, TensorBytes, TensorFile, tensor_from_entry, to_le_bytes};
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tch::Tensor;

use super::config::{about, configure, describe};
use super::keys::{Key, keys};
use super::{CONFIG, HEAD, HEAD_CONFIG, WEIGHTS, read};
use crate::adapter::Adapter;
use crate::plan::{Plan, PlannedTensor};

/// The files of a folder for an adapter called `name`, each with its name. `base` becomes `model_name`.
///
/// # Errors
/// `METHOD_CONFIG` for methods, options and families that the library does not have.
pub fn export(adapter: &Adapter, model: &dyn BackboneConfig, base: &str, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let plan = adapter.plan();
    let (mut tensors, mut head) = (BTreeMap::new(), BTreeMap::new());
    for (key, planned) in keys(model, plan, name)?.into_iter().zip(&plan.tensors) {
        if !planned.in_file() {
            continue;
        }
        let value = adapter.parts().get(&planned.name)?.detach();
        match key {
            Key::Adapter(names) => tensors.extend(names.into_iter().map(|name| (name, value.shallow_clone()))),
            Key::Head(name) => drop(head.insert(name, value)),
        }
    }
    let config = describe(adapter.config(), model, plan, base, name)?;
    let mut files = vec![(CONFIG.to_owned(), text(config)?), (WEIGHTS.to_owned(), serialized(&tensors)?)];
    if !head.is_empty() {
        let mut about = about(model, base, None);
        let labels = model.info().num_labels;
        let named: Map<_, _> = (0..labels).map(|label| (format!("LABEL_{label}"), json!(label))).collect();
        about.insert("label2id".to_owned(), Value::Object(named));
        about.insert("num_labels".to_owned(), json!(labels));
        about.sort_keys();
        files.push((HEAD_CONFIG.to_owned(), text(about)?));
        files.push((HEAD.to_owned(), serialized(&head)?));
    }
    Ok(files)
}

fn text(map: Map<String, Value>) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Value::Object(map)).or_code(code::INTERNAL, || "cannot write JSON".to_owned())
}

fn serialized(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let bytes: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name, to_le_bytes(tensor))).collect();
    let view = |(name, bytes): (&&String, &'_ TensorBytes)| -> Result<()> {
        TensorView::new(bytes.dtype, bytes.shape.clone(), &bytes.bytes)
            .map(drop)
            .or_code(code::INTERNAL, || format!("tensor `{name}` cannot be written"))
    };
    bytes.iter().try_for_each(view)?;
    let views = bytes.iter().filter_map(|(name, bytes)| {
        Some((name.as_str(), TensorView::new(bytes.dtype, bytes.shape.clone(), &bytes.bytes).ok()?))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).or_code(code::INTERNAL, || "tensors cannot be written".to_owned())
}

/// Opens a folder on a model. A head that the folder does not have is the model's own.
///
/// # Errors
/// `ADAPTER_FORMAT` naming the file, field or tensor; `ADAPTER_BASE` for an adapter of another family; `SAFETENSORS` for a
/// damaged file; those of the method's options and plan.
pub fn import(dir: &Path, base: &dyn Backbone) -> Result<Adapter> {
    let map = read(dir)?;
    let missing = || code::ADAPTER_FORMAT.error(format!("{}: name is missing", dir.join(CONFIG).display()));
    let name = map.get("name").and_then(Value::as_str).ok_or_else(missing)?;
    let config = configure(&map, base.config()).map_err(|error| error.at(dir.display()))?;
    let plan = config.plan(base.config()).map_err(|error| error.at(dir.display()))?;
    let weights = dir.join(WEIGHTS);
    if !weights.is_file() {
        return Err(code::ADAPTER_FORMAT
            .error(format!("{}: no such file", weights.display()))
            .hint("save it by `save_adapter(.., use_safetensors=True)`"));
    }
    let mut found = Tensors::open(&weights)?;
    let mut head = match dir.join(HEAD) {
        path if path.is_file() => Some(Tensors::open(&path)?),
        _ => None,
    };
    let mut values = BTreeMap::new();
    for (key, planned) in keys(base.config(), &plan, name)?.into_iter().zip(&plan.tensors) {
        let value = match key {
            _ if !planned.in_file() => continue,
            Key::Adapter(names) => found.take(&names, base.config().info().base_prefix)?,
            Key::Head(name) => match &mut head {
                Some(head) => head.take(&[name], base.config().info().base_prefix)?,
                None => own(base, planned)?,
            },
        };
        values.insert(planned.name.clone(), value);
    }
    found.finish()?;
    build(config.into(), plan, base, &values).map_err(|error| error.at(dir.display()))
}

fn build(
    config: Arc<dyn crate::AdapterConfig>,
    plan: Plan,
    base: &dyn Backbone,
    values: &BTreeMap<String, Tensor>,
) -> Result<Adapter> {
    if let Some((name, _)) = values.iter().find(|(_, value)| value.isfinite().all().int64_value(&[]) == 0) {
        return Err(code::ADAPTER_FORMAT.error(format!("tensor `{name}`: has values that are no numbers")));
    }
    Adapter::build(config, Arc::new(plan), base, rng::Key::seed(0), Some(values))
}

/// The model's own tensor that a planned one stands in for.
fn own(base: &dyn Backbone, planned: &PlannedTensor) -> Result<Tensor> {
    let weights = base.weights(planned.site);
    let value = match planned.part {
        "bias" => weights.and_then(|weights| weights.bias.as_ref()),
        _ => weights.map(|weights| &weights.weight),
    };
    let missing = || code::INTERNAL.error(format!("tensor `{}` has no frozen one to copy", planned.name));
    value.map(Tensor::shallow_clone).ok_or_else(missing)
}

/// The tensors of a file that nobody has asked for yet.
struct Tensors {
    path: String,
    values: BTreeMap<String, Tensor>,
}

impl Tensors {
    fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let entries = file.names().filter_map(|name| file.get(name));
        let values =
            entries.map(|entry| Ok((entry.name.to_owned(), tensor_from_entry(&entry)?))).collect::<Result<_>>()?;
        Ok(Self { path: path.display().to_string(), values })
    }

    /// The tensor that goes by these names, with or without the bare model's name in front.
    fn take(&mut self, names: &[String], prefix: &str) -> Result<Tensor> {
        let mut value = None;
        for name in names {
            let bare = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
            for name in [name.clone(), bare.unwrap_or_else(|| format!("{prefix}.{name}"))] {
                value = self.values.remove(&name).or(value);
            }
        }
        let missing =
            || code::ADAPTER_FORMAT.error(format!("{}: tensor `{}`: missing", self.path, names.join("` or `")));
        value.ok_or_else(missing)
    }

    fn finish(self) -> Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => Err(code::ADAPTER_FORMAT
                .error(format!("{}: tensor `{name}`: not one of this adapter on this model", self.path))
                .hint("is it for another base model?")),
        }
    }
}
