//! One task inside the engine: its adapter, optimiser, place in its schedule, and the step under way.

use pleach_base::{Result, TaskName, code};
use pleach_methods::Adapter;
use pleach_spec::job::{Determinism, NonFinite, OptimizerSpec, ScheduleSpec};
use serde_json::Value;
use tch::Tensor;

use super::objective::Objective;
use crate::flat::FlatLayout;
use crate::gate::Gatekeeper;
use crate::optim::{self, Optimizer};
use crate::schedule;

/// What a task is made of.
pub struct TaskSetup {
    /// Unique in the engine.
    pub name: TaskName,
    /// The adapter, at its initial values.
    pub adapter: Adapter,
    /// Content of `adapter_config.json`.
    pub adapter_config: Value,
    /// The loss.
    pub objective: Objective,
    /// The optimiser.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    pub schedule: ScheduleSpec,
    /// Steps of the whole task: where the schedule ends.
    pub total_steps: u64,
    /// Largest total gradient norm; 0 does not clip.
    pub max_grad_norm: f64,
    /// What to do when something is not finite.
    pub non_finite: NonFinite,
    /// Whether the bits must not depend on the number of ranks.
    pub determinism: Determinism,
    /// Most rows that go through the model at once; all of them when absent.
    pub micro_batch: Option<usize>,
}

/// A reduced gradient that waits for its update.
#[derive(Debug)]
pub(super) struct Pending {
    /// `[n]`, the sum over all ranks.
    pub(super) grads: Tensor,
    pub(super) loss: f64,
    pub(super) tokens: u64,
    /// Something was not finite on some rank: the same on all ranks.
    pub(super) broken: bool,
    /// Sample ids of this rank's micro-batches that were not finite.
    pub(super) broken_samples: Vec<u64>,
}

pub(super) struct Task {
    pub(super) setup: TaskSetup,
    pub(super) layout: FlatLayout,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) gate: Gatekeeper,
    /// Steps done, skipped ones included.
    pub(super) step: u64,
    pub(super) skipped: u64,
    pub(super) pending: Option<Pending>,
}

impl Task {
    pub(super) fn new(setup: TaskSetup) -> Self {
        let params = setup.adapter.params();
        let layout = FlatLayout::new(params.iter().map(|(name, leaf)| (name.to_owned(), leaf.size())).collect());
        let flat = params.flatten();
        let optimizer = optim::build(&setup.optimizer, layout.numel(), flat.device());
        let gate = Gatekeeper::new(&layout, &flat);
        Self { setup, layout, optimizer, gate, step: 0, skipped: 0, pending: None }
    }

    /// The rate of the next update.
    pub(super) fn learning_rate(&self) -> f64 {
        self.setup.optimizer.lr * schedule::factor(&self.setup.schedule, self.step, self.setup.total_steps)
    }

    /// The gradients of all leaves `[n]`, which are zero afterwards.
    pub(super) fn take_grads(&self) -> Tensor {
        let params = self.setup.adapter.params();
        let flat = params.flatten_grads();
        for (_, leaf) in params.iter() {
            let mut grad = leaf.grad();
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
        flat
    }

    /// sha256 of the parameters.
    pub(super) fn digest(&self) -> Result<[u8; 32]> {
        let text = self.setup.adapter.params().digest();
        let mut digest = [0; 32];
        hex::decode_to_slice(&text, &mut digest)
            .map_err(|error| code::INTERNAL.error("the parameters' digest is not a sha256").caused_by(error))?;
        Ok(digest)
    }
}
