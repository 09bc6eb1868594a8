//! A published adapter to start from: a PEFT folder.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, ResultExt as _, code};
use pleach_methods::TaskPlan;
use pleach_store::{MANIFEST, TRAINER_STATE};
use serde_json::Value;
use tch::Tensor;

use super::checkpoint::BASE_FINGERPRINT;
use super::resume::check_base;
use crate::engine::own_parameters;
use crate::flat::read_tensors;

/// The tensors of the adapter in folder `from`, which must be those of `plan`. A folder that Pleach wrote says for which
/// base model it is.
///
/// # Errors
/// `ADAPTER_FORMAT` when it is not an adapter folder or has other tensors, `SAFETENSORS` when its file is damaged,
/// `METHOD_CONFIG` when it is of another method, `ADAPTER_BASE` when it is of another base model.
pub(super) fn read(from: &str, plan: &TaskPlan, fingerprint: &str) -> Result<BTreeMap<String, Tensor>> {
    let at = format!("spec.tasks.{}.init_from", plan.task);
    if from.contains("://") {
        return Err(code::ADAPTER_FORMAT
            .error(format!("{at}: `{from}` is not a local folder"))
            .hint("fetch it with `pleach pull` and give the folder"));
    }
    let folder = Path::new(from);
    if let Ok(text) = std::fs::read(folder.join(MANIFEST)) {
        let manifest: Value =
            serde_json::from_slice(&text).or_code(code::ADAPTER_FORMAT, || format!("{at}: {MANIFEST} is not JSON"))?;
        let recorded = manifest.get("meta").and_then(|meta| meta.get(BASE_FINGERPRINT));
        check_base(recorded, &at, fingerprint)?;
    }
    let adapter = pleach_methods::import(folder).map_err(|error| error.at(&at))?;
    let method = adapter.config.card().name;
    if method != plan.method {
        return Err(code::METHOD_CONFIG
            .error(format!("{at}: the adapter in {from} is {method}, the task trains {}", plan.method)));
    }
    let mut values = adapter.values().map_err(|error| error.at(&at))?;
    // What is trained may not be what the adapter's file holds: a step folder has it beside.
    let own = beside(folder).map_err(|error| error.at(&at))?;
    match own.is_empty() {
        true => adapter.check(&plan.plan).map_err(|error| error.at(&at))?,
        false => values.retain(|name, _| plan.plan.named(name).is_some()),
    }
    values.extend(own);
    Ok(values)
}

/// The parameters that a step folder keeps in its trainer's state.
fn beside(folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    match std::fs::read(folder.join(TRAINER_STATE)) {
        Ok(bytes) => Ok(own_parameters(&read_tensors(&bytes.into()).map_err(|error| error.at(TRAINER_STATE))?)),
        Err(_) => Ok(BTreeMap::new()),
    }
}
