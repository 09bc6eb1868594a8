//! Sequences of tasks, each with classes of its own, learnt by the engine as jobs learn them.

use std::sync::{Arc, Mutex};

use pleach_base::rng::Key;
use pleach_base::{Result, SystemClock, code};
use pleach_methods::Adapter;
use pleach_nn::{Backbone, Reads};
use pleach_train::{Course, CourseRows, Engine, Labelled, Silent};

use super::data::Data;
use super::train::{Batches, Recipe, objective, task};

/// Rows that go through the model at once.
const ROWS: usize = 256;

/// A task of a sequence: its rows, with the classes' numbers among all, and those that it is tested on.
#[derive(Debug)]
pub struct Part {
    /// To train on.
    pub train: Data,
    /// To test on.
    pub test: Data,
}

struct Rows {
    /// A tensor is used by one thread at a time.
    parts: Mutex<Vec<Part>>,
    reads: Reads,
}

impl Rows {
    fn labelled(&self, of: impl Fn(&Part) -> &Data, number: usize) -> Result<Vec<Labelled>> {
        let parts = self.parts.lock().map_err(|_| code::INTERNAL.error("rows are in use by what panicked"))?;
        let Some(data) = parts.get(number).map(of) else { return Ok(Vec::new()) };
        let rows: Vec<i64> = (0..data.len() as i64).collect();
        let batch = |rows: &[i64]| {
            let (input, labels) = data.batch(&self.reads, rows)?;
            let classes = Data::new(labels.shallow_clone(), labels).classes();
            Ok(Labelled { input, classes: classes.into_iter().map(|class| class as u32).collect() })
        };
        rows.chunks(ROWS).map(batch).collect()
    }
}

impl CourseRows for Rows {
    fn train(&self, task: usize, _: u32) -> Result<Vec<Labelled>> {
        self.labelled(|part| &part.train, task)
    }

    fn eval(&self, task: usize) -> Result<Vec<Labelled>> {
        self.labelled(|part| &part.test, task)
    }
}

/// Trains an adapter through a sequence of tasks, `epochs` passes over each, and gives the accuracy matrix in per cent.
/// `recipe.steps` is not used.
///
/// # Errors
/// Those of the engine; `INTERNAL` for an adapter that learns no sequence.
pub fn learn(
    model: &dyn Backbone,
    adapter: &Adapter,
    recipe: &Recipe,
    parts: Vec<Part>,
    epochs: u64,
    key: Key,
) -> Result<Vec<Vec<f64>>> {
    let none = || code::INTERNAL.error("the adapter learns no sequence of tasks");
    let splits = adapter.config().sequence().ok_or_else(none)?.splits(model.config())?;
    let reads = model.config().info().reads.clone();
    let steps = |part: &Part| (part.train.len() / recipe.batch.min(part.train.len()).max(1)) as u64 * epochs;
    let phases: Vec<u64> = parts.iter().map(steps).collect();
    let own: Vec<Data> = parts.iter().map(|part| part.train.shallow_clone()).collect();
    let group = pleach_comm::local(model.device());
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    let recipe = Recipe { steps: phases.iter().sum(), ..*recipe };
    engine.add_task(recipe.setup(adapter.alias()?, objective(model)))?;
    let rows = Arc::new(Rows { parts: Mutex::new(parts), reads: reads.clone() });
    engine.learns(&task(), Course { splits, phases: phases.clone(), lanes: 1, rows })?;
    for (number, (data, steps)) in own.iter().zip(&phases).enumerate() {
        let mut batches = Batches::new(key.with(number as u64), data.len(), recipe.batch);
        for _ in 0..*steps {
            let (input, labels) = data.batch(&reads, &batches.draw())?;
            engine.forward_backward_rows(&task(), input, &labels)?;
            engine.optim_step(&task(), false)?;
        }
    }
    let matrix = engine.accuracies(&task())?;
    Ok(matrix.into_iter().map(|row| row.into_iter().map(|accuracy| 100.0 * accuracy).collect()).collect())
}
