//! A task's state as the files of a step folder, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use pleach_base::{Error, Result, code};
use pleach_methods::Keep;
use pleach_nn::Backbone;
use pleach_store::tensors::{self, StoredTensor};
use pleach_store::{ADAPTER_CONFIG, ADAPTER_MODEL, Gate, SnapshotFile, TRAINER_STATE};
use serde_json::Value;
use tch::Tensor;

use super::task::Task;
use super::{Saved, reload};
use crate::flat::{read_tensors, to_stored};

/// Steps done, skipped ones included.
const STEP: &str = "step";
/// Updates applied: what the optimiser's bias correction counts.
const UPDATES: &str = "updates";
const SKIPPED: &str = "skipped";
/// Which tensors had gradients, in the adapter's order.
const JUDGED: &str = "judged";
/// Before the name of a tensor that the method changes by itself.
const STATE: &str = "state/";
/// Before the name of a parameter that the adapter's file does not hold as it is.
const PARAM: &str = "param/";

/// The files, judged: what the gate finds in the tensors, and whether the files give the adapter again.
pub(super) fn save(model: &dyn Backbone, task: &Task) -> Result<Saved> {
    let params = task.setup.adapter.params();
    let exported = task.setup.adapter.exported()?;
    let adapter: Vec<_> = exported.iter().map(|(name, tensor)| to_stored(name, tensor)).collect::<Result<_>>()?;
    // What the method found out while it trained counts more than what was asked of it.
    let mut config = task.setup.adapter_config.clone();
    if let Value::Object(fields) = &mut config {
        fields.extend(task.setup.adapter.exported_config()?);
    }
    let config = pleach_store::canonical_json(&config)?;
    let files = vec![
        SnapshotFile::new(ADAPTER_CONFIG, config),
        SnapshotFile::new(ADAPTER_MODEL, tensors::write(&adapter)?),
        SnapshotFile::new(TRAINER_STATE, tensors::write(&trainer_state(task, &exported)?)?),
    ];
    let mut gate = task.gate.judge(&task.layout, &params.flatten());
    if gate.publishable
        && let Some(fault) = reload::fault(&task.setup.adapter, model, &files)?
    {
        gate = Gate { publishable: false, findings: vec![fault] };
    }
    Ok(Saved { files, gate })
}

fn trainer_state(task: &Task, exported: &[(String, Tensor)]) -> Result<Vec<StoredTensor>> {
    let number = |value: u64| Tensor::from_slice(&[value as i64]);
    let judged: Vec<u8> = task.gate.judged().iter().map(|judged| u8::from(*judged)).collect();
    let mut state = vec![
        to_stored(STEP, &number(task.step))?,
        to_stored(UPDATES, &number(task.optimizer.updates()))?,
        to_stored(SKIPPED, &number(task.skipped))?,
        to_stored(JUDGED, &Tensor::from_slice(&judged))?,
    ];
    for (tensor, value) in task.states().filter(|(tensor, _)| tensor.keep == Keep::State) {
        state.push(to_stored(format!("{STATE}{}", tensor.name), value)?);
    }
    for (name, leaf) in task.setup.adapter.params().iter() {
        if !exported.iter().any(|(other, tensor)| other == name && tensor.equal(leaf)) {
            state.push(to_stored(format!("{PARAM}{name}"), leaf)?);
        }
    }
    for (moment, flat) in task.optimizer.moments() {
        for (name, piece) in task.layout.pieces(&flat) {
            state.push(to_stored(format!("{moment}/{name}"), &piece)?);
        }
    }
    Ok(state)
}

pub(super) fn load(task: &mut Task, files: &BTreeMap<String, Bytes>) -> Result<()> {
    let file = |name: &str| {
        files.get(name).ok_or_else(|| code::ADAPTER_FORMAT.error(format!("{name}: missing from the checkpoint")))
    };
    let adapter = read_tensors(file(ADAPTER_MODEL)?).map_err(|error| error.at(ADAPTER_MODEL))?;
    let state = read_tensors(file(TRAINER_STATE)?).map_err(|error| error.at(TRAINER_STATE))?;
    let params = task.setup.adapter.params();
    let device = params.flatten().device();
    let parameters = parameters(&adapter, &state);
    let flat = task.layout.gather("", &parameters).map_err(|error| other_options(error.at(ADAPTER_MODEL)))?;
    let kept = kept(task, &adapter, &state).map_err(other_options)?;
    let mut moments = BTreeMap::new();
    for moment in task.optimizer.moments().into_keys() {
        let gathered = task.layout.gather(&format!("{moment}/"), &state).map_err(|error| error.at(TRAINER_STATE))?;
        moments.insert(moment.to_owned(), gathered.to_device(device));
    }
    let judged = Vec::<u8>::try_from(entry(&state, JUDGED)?).unwrap_or_default();
    // Everything was read: from here on nothing can leave the task half restored but a defect.
    task.optimizer.restore(number(&state, UPDATES)?, &moments)?;
    task.gate.restore(judged.into_iter().map(|byte| byte != 0).collect())?;
    task.step = number(&state, STEP)?;
    task.skipped = number(&state, SKIPPED)?;
    task.pending = None;
    for (name, value) in kept {
        if let Some(own) = task.setup.adapter.kept().get(&name) {
            tch::no_grad(|| own.shallow_clone().copy_(&value));
        }
    }
    params.unflatten(&flat.to_device(device))?;
    params.zero_grads();
    task.state_digest = task.digest()?;
    task.whole = true;
    Ok(())
}

/// A checkpoint whose tensors are not the adapter's is one of a job with other options.
fn other_options(error: Error) -> Error {
    error.hint("the step was trained with other options: restore them, or start a job of another name")
}

/// The parameters that the adapter's file does not hold as they are, by name, from a trainer's state.
pub(crate) fn own_parameters(state: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let own = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(PARAM)?, tensor)));
    own.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
}

/// The parameters by name: those of the trainer's state first, since the adapter's file may hold another form of them.
fn parameters(adapter: &BTreeMap<String, Tensor>, state: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut all: BTreeMap<_, _> = adapter.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    all.extend(own_parameters(state));
    all
}

/// The values of tensors that are not trained and not worked out again, checked against the plan.
fn kept(
    task: &Task,
    adapter: &BTreeMap<String, Tensor>,
    state: &BTreeMap<String, Tensor>,
) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    for tensor in &task.setup.adapter.plan().tensors {
        let (file, value) = match tensor.keep {
            Keep::Trained | Keep::Derived => continue,
            Keep::Saved | Keep::Moving => (ADAPTER_MODEL, adapter.get(&tensor.name)),
            Keep::State => (TRAINER_STATE, state.get(&format!("{STATE}{}", tensor.name))),
        };
        let wanted: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
        match value {
            Some(value) if value.size() == wanted => found.push((tensor.name.clone(), value.shallow_clone())),
            Some(value) => {
                let shape = value.size();
                return Err(code::ADAPTER_FORMAT.error(format!(
                    "{file}: tensor {} has shape {shape:?}, the adapter needs {wanted:?}",
                    tensor.name
                )));
            }
            None => return Err(code::ADAPTER_FORMAT.error(format!("{file}: tensor {} is missing", tensor.name))),
        }
    }
    Ok(found)
}

fn entry<'a>(state: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    state.get(name).ok_or_else(|| code::ADAPTER_FORMAT.error(format!("{TRAINER_STATE}: {name} is missing")))
}

fn number(state: &BTreeMap<String, Tensor>, name: &str) -> Result<u64> {
    let tensor = entry(state, name)?;
    match (tensor.numel(), u64::try_from(tensor.to_kind(tch::Kind::Int64).reshape([-1]).int64_value(&[0]))) {
        (1, Ok(value)) => Ok(value),
        _ => Err(code::ADAPTER_FORMAT.error(format!("{TRAINER_STATE}: {name} is not one number"))),
    }
}
