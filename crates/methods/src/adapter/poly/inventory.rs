//! Skills and logits of an adapter that was trained before.

use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Backbone, Init, draw};
use serde_json::Value;
use tch::Tensor;

use super::plan::NEAR_ZERO;
use super::{Config, LOGITS};
use crate::adapter::common::sizes;
use crate::plan::PlannedTensor;

/// The first value of a tensor that an inventory gives: skills as they are, logits of tasks that both name, new ones for
/// the others.
pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone, key: Key) -> Result<Tensor> {
    let lost = || code::INTERNAL.error(format!("tensor `{}` has no value to begin with", tensor.name));
    let folder = config.inventory.as_deref().map(Path::new).ok_or_else(lost)?;
    let adapter = crate::import(folder).map_err(|error| error.at("inventory"))?;
    let value = adapter.values().map_err(|error| error.at("inventory"))?.remove(&tensor.name);
    if tensor.part == LOGITS {
        let fresh = draw(Init::Uniform { bound: NEAR_ZERO }, key, &tensor.shape, base.device()).ok_or_else(lost)?;
        let known: Vec<&str> = match adapter.map.get("task_names") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        return Ok(value.map_or_else(|| fresh.shallow_clone(), |old| with_known(&fresh, &old, &known, &config.task_names)));
    }
    value.filter(|value| value.size() == sizes(tensor)).map(|value| value.to_device(base.device())).ok_or_else(|| {
        code::ADAPTER_FORMAT
            .error(format!("inventory: tensor `{}`: not in {} with shape {:?}", tensor.name, folder.display(), tensor.shape))
            .hint("r, n_skills, n_splits and target_modules must be those it was trained with")
    })
}

/// Rows of `old` where both lists have the name, of `fresh` elsewhere.
fn with_known(fresh: &Tensor, old: &Tensor, known: &[&str], wanted: &[String]) -> Tensor {
    let fits = old.dim() == 2 && old.size()[1] == fresh.size()[1];
    let row = |(at, name): (usize, &String)| {
        let before = known.iter().position(|known| known == name).filter(|before| fits && (*before as i64) < old.size()[0]);
        before.map_or_else(|| fresh.get(at as i64), |before| old.get(before as i64).to_device(fresh.device()))
    };
    Tensor::stack(&wanted.iter().enumerate().map(row).collect::<Vec<_>>(), 0)
}
