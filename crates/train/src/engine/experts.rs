//! Adapters of tasks as experts of another task's.

use pleach_base::{Result, TaskName, code};
use tch::Tensor;

use super::task::Task;

/// Copies the tensors of `expert`'s adapter into those that `task` has of it, which have the expert's name in front:
/// frozen ones, and parameters when `trained` says so.
///
/// # Errors
/// `INTERNAL` when there is none, or one of another shape.
pub(super) fn take(task: &Task, name: &TaskName, expert: &Task, trained: bool) -> Result<()> {
    let (own, theirs) = (&task.setup.adapter, &expert.setup.adapter);
    let kept = theirs.kept().iter().map(|(name, value)| (name.as_str(), value));
    let mut found = false;
    for (tensor, value) in theirs.params().iter().chain(kept) {
        let tensor = format!("{name}.{tensor}");
        let place = own.kept().get(&tensor).or_else(|| own.params().get(&tensor));
        let Some(place) = place else { continue };
        found = true;
        if place.size() != value.size() {
            return Err(code::INTERNAL.error(format!("tensor `{tensor}`: the expert's has another shape")));
        }
        if trained || own.params().get(&tensor).is_none() {
            tch::no_grad(|| Tensor::copy_(&mut place.detach(), &value.detach()));
        }
    }
    match found {
        true => Ok(()),
        false => Err(code::INTERNAL.error(format!("the mixture has no tensor of expert {name}"))),
    }
}
