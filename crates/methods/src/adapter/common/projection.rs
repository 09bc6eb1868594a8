//! Two frozen random tensors that all modules of an adapter share (VeRA, RandLoRA): as large as the largest module
//! needs, drawn from a seed as PEFT draws them, in the file or not.

use pleach_nn::BackboneConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared_tensor;
use crate::plan::Plan;

/// Options of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Projection {
    /// Seed of the frozen tensors that all modules share.
    pub projection_prng_key: i64,
    /// Save them with the adapter; they are drawn again from the seed otherwise.
    pub save_projection: bool,
}

impl Default for Projection {
    fn default() -> Self {
        Self { projection_prng_key: 0, save_projection: true }
    }
}

impl Projection {
    /// Adds the two to a plan whose sites are complete: names, parts, and their shapes for the largest input and output
    /// of all sites.
    pub(crate) fn plan(
        &self,
        plan: &mut Plan,
        model: &dyn BackboneConfig,
        pair: [(&str, &'static str); 2],
        shapes: impl FnOnce(usize, usize) -> [Vec<usize>; 2],
    ) {
        let dims = || plan.sites.iter().map(|id| model.sites()[*id].dims);
        let input = dims().map(|dims| dims.input).max().unwrap_or_default();
        let output = dims().map(|dims| dims.output).max().unwrap_or_default();
        for ((name, part), shape) in pair.into_iter().zip(shapes(input, output)) {
            let tensor = shared_tensor(plan, name, part, shape, self.save_projection);
            plan.tensors.extend(tensor);
        }
    }

    /// PEFT's generator where it draws the tensor of this name: both come from one, `first` before the other.
    #[cfg(feature = "torch")]
    pub(crate) fn generator(&self, plan: &Plan, first: &str, name: &str) -> crate::mersenne::Mersenne {
        let mut generator = crate::mersenne::Mersenne::seed(self.projection_prng_key);
        if name != first {
            generator.skip(plan.named(first).map_or(0, crate::plan::PlannedTensor::numel));
        }
        generator
    }
}
