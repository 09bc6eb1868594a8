//! Rows that name tasks, for methods that tell them apart.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_methods::Adapter;
use pleach_nn::Backbone;
use pleach_train::{Mode, PassInput, forward};
use tch::Tensor;

use super::data::Data;
use super::train::{Batches, Recipe, fit_with, objective};

/// Labelled rows and the task that each is of.
#[derive(Debug)]
pub struct Tasked {
    /// The rows.
    pub data: Data,
    /// Their tasks.
    pub tasks: Vec<u32>,
}

impl Tasked {
    /// The rows of several tasks, in the order of the tasks.
    #[must_use]
    pub fn of(parts: &[Data]) -> Self {
        let cat = |of: &dyn Fn(&Data) -> Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        let (x, y) = (cat(&|part| part.x.shallow_clone()), cat(&|part| part.y.shallow_clone()));
        let tasks = parts.iter().enumerate().flat_map(|(task, part)| std::iter::repeat_n(task as u32, part.len()));
        Self { data: Data::new(x, y), tasks: tasks.collect() }
    }

    /// The rows of a task, by number.
    #[must_use]
    pub fn rows_of(&self, task: u32) -> Vec<i64> {
        (0..self.tasks.len()).filter(|row| self.tasks[*row] == task).map(|row| row as i64).collect()
    }

    /// Some rows as the model takes them, their tasks named.
    ///
    /// # Errors
    /// As [`Data::batch`].
    pub fn batch(&self, model: &dyn Backbone, rows: &[i64]) -> Result<(PassInput, Tensor)> {
        let (input, labels) = self.data.batch(&model.config().info().reads, rows)?;
        let tasks = rows.iter().map(|row| self.tasks[*row as usize]).collect();
        Ok((PassInput { layout: input.layout.of_tasks(tasks), ..input }, labels))
    }

    /// What the model gives for these rows with an adapter.
    ///
    /// # Errors
    /// As [`Data::batch`].
    pub fn outputs(&self, model: &dyn Backbone, adapter: &Adapter, rows: &[i64]) -> Result<Tensor> {
        let (input, _) = self.batch(model, rows)?;
        Ok(tch::no_grad(|| forward(model, adapter, &input, Mode::EVAL).tensor().shallow_clone()))
    }

    /// Trains an adapter in place on drawn batches that mix all tasks.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn fit_mixed(&self, model: &dyn Backbone, adapter: &Adapter, recipe: &Recipe, key: Key) -> Result<()> {
        let mut batches = Batches::new(key, self.tasks.len(), recipe.batch);
        fit_with(model, adapter, recipe, objective(model), |_| self.batch(model, &batches.draw())).map(drop)
    }

    /// The same where tasks take turns: each batch is of one task.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn fit_in_turns(&self, model: &dyn Backbone, adapter: &Adapter, recipe: &Recipe, key: Key) -> Result<()> {
        let count = self.tasks.iter().max().map_or(0, |last| last + 1);
        let own: Vec<Vec<i64>> = (0..count).map(|task| self.rows_of(task)).collect();
        let batches = |task: usize| Batches::new(key.with(task as u64), own[task].len(), recipe.batch);
        let mut of_task: Vec<Batches> = (0..own.len()).map(batches).collect();
        let mut turns = Batches::new(key.named("turns"), own.len(), 1);
        fit_with(model, adapter, recipe, objective(model), |_| {
            let task = turns.draw().first().copied().unwrap_or_default() as usize;
            let rows: Vec<i64> = of_task[task].draw().into_iter().map(|row| own[task][row as usize]).collect();
            self.batch(model, &rows)
        })
        .map(drop)
    }
}
