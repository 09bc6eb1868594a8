//! A published adapter to start from: a PEFT folder.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, code};
use pleach_methods::TaskPlan;
use pleach_methods::files::Recorded;
use pleach_store::TRAINER_STATE;
use tch::Tensor;

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
    Recorded::read(folder)?.check_base(&at, fingerprint)?;
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
