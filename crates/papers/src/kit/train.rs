//! Training by the engine that trains jobs, as its only rank.

use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, SystemClock, TaskName};
use pleach_data::Batch;
use pleach_methods::Adapter;
use pleach_nn::{Backbone, Reads};
use pleach_spec::job::{Determinism, NonFinite, OptimizerSpec, ScheduleName, ScheduleSpec};
use pleach_train::{Engine, Objective, PassInput, Silent, StepBatch, TaskSetup};
use serde_json::Value;
use tch::Tensor;

use super::data::Data;
use super::draws::order;

/// How an adapter is trained: AdamW.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows a step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The rate after the warm-up.
    pub schedule: ScheduleName,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Largest norm of the gradient; 0 does not clip.
    pub max_grad_norm: f64,
}

impl Recipe {
    /// A cosine without warm-up, decay or clipping.
    #[must_use]
    pub const fn new(steps: u64, batch: usize, lr: f64) -> Self {
        let schedule = ScheduleName::Cosine;
        Self { steps, batch, lr, weight_decay: 0.0, schedule, warmup: 0, max_grad_norm: 0.0 }
    }

    /// The same with a rate that stays.
    #[must_use]
    pub const fn constant(self) -> Self {
        Self { schedule: ScheduleName::Constant, ..self }
    }

    pub(super) fn setup(&self, adapter: Adapter, objective: Objective) -> TaskSetup {
        TaskSetup {
            name: task(),
            adapter,
            adapter_config: Value::Null,
            objective,
            optimizer: OptimizerSpec { lr: self.lr, weight_decay: self.weight_decay, ..OptimizerSpec::default() },
            schedule: ScheduleSpec { name: self.schedule, warmup_steps: self.warmup },
            total_steps: self.steps,
            max_grad_norm: self.max_grad_norm,
            non_finite: NonFinite::Stop,
            determinism: Determinism::Fast,
            micro_batch: None,
            checkpointing: false,
            own_steps: true,
        }
    }
}

/// The only task of an engine.
pub(super) fn task() -> TaskName {
    TaskName::from("a")
}

/// What a model is trained on: what its head says, else vectors to come near to.
pub(super) fn objective(model: &dyn Backbone) -> Objective {
    Objective::of_head(model.config().info().head).unwrap_or(Objective::Regression)
}

/// Rows of drawn batches: every epoch has each row once, in an order of its own; the last rows that fill no batch wait for
/// the next.
#[derive(Debug)]
pub struct Batches {
    key: Key,
    rows: usize,
    batch: usize,
    epoch: u64,
    queue: Vec<i64>,
}

impl Batches {
    /// Batches of `batch` of so many rows.
    #[must_use]
    pub fn new(key: Key, rows: usize, batch: usize) -> Self {
        Self { key, rows, batch: batch.min(rows), epoch: 0, queue: Vec::new() }
    }

    /// The rows of the next batch.
    pub fn draw(&mut self) -> Vec<i64> {
        while self.queue.len() < self.batch {
            self.queue.extend(order(self.key.with(self.epoch), self.rows));
            self.epoch += 1;
        }
        self.queue.drain(..self.batch).collect()
    }
}

/// Trains an adapter in place on drawn batches of `data`, and gives the loss of every step.
///
/// # Errors
/// Those of the engine.
pub fn fit(model: &dyn Backbone, adapter: &Adapter, recipe: &Recipe, data: &Data, key: Key) -> Result<Vec<f64>> {
    let reads: &Reads = &model.config().info().reads;
    let mut batches = Batches::new(key, data.len(), recipe.batch);
    fit_with(model, adapter, recipe, objective(model), |_| data.batch(reads, &batches.draw()))
}

/// The same with an objective and batches of the caller's: `next` is given the number of steps done.
///
/// # Errors
/// Those of the engine, and of `next`.
pub fn fit_with(
    model: &dyn Backbone,
    adapter: &Adapter,
    recipe: &Recipe,
    objective: Objective,
    mut next: impl FnMut(u64) -> Result<(PassInput, Tensor)>,
) -> Result<Vec<f64>> {
    let group = pleach_comm::local(model.device());
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    engine.add_task(recipe.setup(adapter.alias()?, objective))?;
    let name = task();
    let mut losses = Vec::with_capacity(recipe.steps as usize);
    for step in 0..recipe.steps {
        let (input, labels) = next(step)?;
        engine.forward_backward_rows(&name, input, &labels)?;
        losses.push(engine.optim_step(&name, false)?.loss);
    }
    Ok(losses)
}

/// The same with rows as a job's data has them, which are laid out as the adapter's method asks.
///
/// # Errors
/// As [`fit_with`].
pub fn fit_batches(
    model: &dyn Backbone,
    adapter: &Adapter,
    recipe: &Recipe,
    mut next: impl FnMut(u64) -> Result<Batch>,
) -> Result<Vec<f64>> {
    let group = pleach_comm::local(model.device());
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    engine.add_task(recipe.setup(adapter.alias()?, objective(model)))?;
    let name = task();
    let mut losses = Vec::with_capacity(recipe.steps as usize);
    for step in 0..recipe.steps {
        let batch = next(step)?;
        let lane_rows = vec![batch.len()];
        engine.forward_backward(&name, &StepBatch { lanes: vec![(0, batch)], lane_rows })?;
        losses.push(engine.optim_step(&name, false)?.loss);
    }
    Ok(losses)
}
