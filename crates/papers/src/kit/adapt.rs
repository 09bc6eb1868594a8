//! Adapters from options, as a job file has them.

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt as _, code};
use pleach_methods::{Adapter, AdapterConfig, Export, Method, MethodKind, find};
use pleach_nn::{Backbone, OutTensor, write_tensors};
use serde_json::{Map, Value};

/// The configuration that `{"method": NAME, ..}` describes: the registry's own.
///
/// # Errors
/// `METHOD_UNKNOWN`, and what the method refuses.
pub fn options(described: &Value) -> Result<Arc<dyn AdapterConfig>> {
    let (method, options) = named(MethodKind::Adapter, described)?;
    Ok(method.parse(&options, "adapter")?.into())
}

/// The adapter that `{"method": NAME, ..}` describes, on a model.
///
/// # Errors
/// As [`options()`]; those of the method's plan.
pub fn adapter(model: &dyn Backbone, described: &Value, key: Key) -> Result<Adapter> {
    adapter_of(model, options(described)?, key)
}

/// The adapter of a configuration, on a model.
///
/// # Errors
/// Those of the method's plan.
pub fn adapter_of(model: &dyn Backbone, config: Arc<dyn AdapterConfig>, key: Key) -> Result<Adapter> {
    let plan = Arc::new(config.plan(model.config())?);
    Adapter::build(config, plan, model, key, None)
}

/// The configuration of a strategy or compression `{"method": NAME, ..}` around an adapter.
///
/// # Errors
/// `METHOD_UNKNOWN`, and what the methods refuse, each by itself and both together.
pub fn around(kind: MethodKind, outer: &Value, inner: &Value) -> Result<Arc<dyn AdapterConfig>> {
    let (method, outer) = named(kind, outer)?;
    let none = || code::INTERNAL.error(format!("{} stands around no adapter", method.card().name));
    let outer = method.around(&outer, "around")?.ok_or_else(none)?;
    let (method, inner) = named(MethodKind::Adapter, inner)?;
    Ok(outer.wrap(method.parse(&inner, "adapter")?)?.into())
}

/// Writes an adapter's folder, for what begins with it.
///
/// # Errors
/// `IO`; those of the method.
pub fn save(model: &dyn Backbone, adapter: &Adapter, folder: &Path) -> Result<()> {
    let fields = adapter.adapter_config(model.config(), &Export { base: "" })?;
    let failed = || format!("{}: cannot be written", folder.display());
    std::fs::write(folder.join("adapter_config.json"), Value::Object(fields).to_string()).or_code(code::IO, failed)?;
    let tensors = adapter.exported()?.into_iter().map(|(name, value)| (name, OutTensor::of(&value.contiguous())));
    write_tensors(&folder.join("adapter_model.safetensors"), tensors.collect())
}

/// A method and its options.
fn named(kind: MethodKind, described: &Value) -> Result<(&'static dyn Method, Map<String, Value>)> {
    let bad = || code::INTERNAL.error("options begin with their method");
    let mut options = described.as_object().cloned().ok_or_else(bad)?;
    let name = options.remove("method").ok_or_else(bad)?;
    Ok((find(kind, name.as_str().ok_or_else(bad)?)?, options))
}
