//! Tensors as methods usually plan them, and the job that shows a method.

use pleach_nn::{Init, Role, Site};

use crate::plan::{Keep, Plan, PlannedTensor};

/// A parameter that PEFT keeps as `part` of the site's module.
pub(crate) fn parameter(site: &Site, part: &'static str, shape: impl Into<Vec<usize>>, init: Init) -> PlannedTensor {
    PlannedTensor::trained(format!("base_model.model.{}.{part}", site.path), site.id, part, shape, init)
}

/// A frozen tensor that all sites of a plan share. PEFT's `save_projection` says whether it is in the file.
pub(crate) fn shared_tensor(
    plan: &Plan,
    name: &str,
    part: &'static str,
    shape: Vec<usize>,
    saved: bool,
) -> Option<PlannedTensor> {
    let site = *plan.sites.first()?;
    let keep = if saved { Keep::Saved } else { Keep::Derived };
    Some(PlannedTensor { name: name.to_owned(), site, part, shape, init: Init::Derived, keep })
}

/// The shape of a tensor as the tensor library takes it.
#[cfg(feature = "torch")]
pub(crate) fn sizes(tensor: &PlannedTensor) -> Vec<i64> {
    tensor.shape.iter().map(|n| *n as i64).collect()
}

/// The sizes over which a convolution slides; none for other sites.
pub(crate) fn window(site: &Site) -> &[usize] {
    let weight = site.weight.as_ref().filter(|_| site.role == Role::Conv);
    weight.and_then(|weight| weight.shape.get(2..)).unwrap_or_default()
}

/// PyTorch's usual beginning of a map from this many inputs: uniform, Kaiming with `a = sqrt(5)`.
pub(crate) fn usual_init(inputs: usize) -> Init {
    Init::Uniform { bound: 1.0 / (inputs.max(1) as f32).sqrt() }
}

/// A job with one task that trains an adapter: its method, and its options as they follow in the line.
macro_rules! sample_job {
    ($method:literal, $options:literal) => {
        concat!(
            "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n  data: {source: ./train.jsonl, task: causal_lm}\n",
            "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n  tasks:\n",
            "    - {name: answers, adapter: {method: ",
            $method,
            $options,
            "}}\n  checkpoint: {store: ./checkpoints}\n"
        )
    };
}
pub(crate) use sample_job;
