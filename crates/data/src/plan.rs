//! Which positions, and so which rows, a step and each of its lanes are made of. Pure arithmetic: any step can be asked
//! for at any time, whatever was trained before and by whom.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, TaskName, code};
use pleach_spec::job::{DataSpec, TrainSpec};
use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, SHARD_ROWS};
use crate::encode::Encoder;
use crate::permutation::Permutation;
use crate::turns::Turns;

/// How epochs are cut into steps and steps into lanes.
///
/// A plan may have several parts, one after the other, each over rows of its own. Positions then count through the rows
/// of all parts, and epochs through those of all parts, so that no number stands for two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    rows: u64,
    global_batch: u32,
    lanes: u32,
    total_steps: u64,
    /// Tasks that take turns.
    turns: Option<Arc<Turns>>,
    parts: Arc<[Part]>,
}

/// A part of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    rows: u64,
    steps: u64,
    /// What came before.
    before: Before,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Before {
    rows: u64,
    steps: u64,
    epochs: u64,
}

impl Part {
    fn per_epoch(&self, global_batch: u32) -> u64 {
        self.rows.div_ceil(u64::from(global_batch)).max(1)
    }
}

/// Which steps an epoch is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSteps {
    /// Its first step, from 0.
    pub first: u64,
    /// The step after its last one. Where another part begins before the epoch is over, the first one of that part.
    pub end: u64,
    /// Steps of the whole epoch.
    pub whole: u64,
}

/// What one lane contributes to one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStep {
    /// The step, from 0.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The lane.
    pub lane: u32,
    /// Positions in the epoch's order; empty when a short step has fewer rows than lanes.
    pub positions: Range<u64>,
}

/// A [`LaneStep`] with the rows that the epoch's order puts at its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRows {
    /// Step, epoch, lane, positions.
    pub at: LaneStep,
    /// Sample ids, in order of position.
    pub rows: Vec<u64>,
}

/// All that is needed to go on: the number of steps done. Everything else follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Steps done; also the number, from 0, of the next.
    pub step: u64,
}

impl Plan {
    /// Cuts `epochs` passes over `rows` rows into steps of `global_batch`, or makes exactly `max_steps` steps; the
    /// smaller of the two when both are given. Without either nothing is trained.
    ///
    /// # Errors
    /// `DATA_EMPTY` without rows, `DATA_TOO_SMALL` for a batch larger than the rows, `BAD_VALUE` for a batch or lanes
    /// of 0 or more lanes than the batch.
    pub fn new(rows: u64, global_batch: u32, lanes: u32, epochs: Option<u32>, max_steps: Option<u64>) -> Result<Self> {
        if rows == 0 {
            return Err(code::DATA_EMPTY.error("the source has no usable row"));
        }
        if global_batch == 0 || lanes == 0 || lanes > global_batch {
            return Err(code::BAD_VALUE
                .error(format!("spec.train: {lanes} lanes of a global_batch of {global_batch}"))
                .hint("use at least one lane and at most one a row"));
        }
        if u64::from(global_batch) > rows {
            return Err(code::DATA_TOO_SMALL
                .error(format!("spec.train.global_batch: {global_batch} is larger than the {rows} usable rows"))
                .hint(format!("use a global_batch of {rows} or less, or add rows")));
        }
        let plan = Self { rows, global_batch, lanes, total_steps: 0, turns: None, parts: Arc::new([]) };
        Ok(plan.until(epochs, max_steps))
    }

    fn until(self, epochs: Option<u32>, max_steps: Option<u64>) -> Self {
        let by_epochs = epochs.map(|epochs| u64::from(epochs).saturating_mul(self.steps_per_epoch()));
        let total_steps = by_epochs.into_iter().chain(max_steps).min().unwrap_or(0);
        let part = Part { rows: self.rows, steps: total_steps, before: Before::default() };
        Self { total_steps, parts: Arc::new([part]), ..self }
    }

    /// The same rows where tasks take turns.
    #[must_use]
    fn by_task(self, turns: Turns, train: &TrainSpec) -> Self {
        Self { turns: Some(Arc::new(turns)), ..self }.until(train.epochs, train.max_steps)
    }

    /// The plan of a training section over several parts, each of so many rows: its epochs over each, and of its
    /// `max_steps` as many for each.
    ///
    /// # Errors
    /// As [`Plan::new`], for any of the parts.
    pub fn in_parts(train: &TrainSpec, rows: &[u64], lanes: u32) -> Result<Self> {
        let count = rows.len().max(1) as u64;
        let (mut parts, mut before) = (Vec::with_capacity(rows.len()), Before::default());
        for (number, rows) in rows.iter().enumerate() {
            let upto = |number: u64| train.max_steps.map(|steps| steps * number / count);
            let own = upto(number as u64 + 1).zip(upto(number as u64)).map(|(end, start)| end - start);
            let steps = Self::new(*rows, train.global_batch, lanes, train.epochs, own)?.total_steps;
            let part = Part { rows: *rows, steps, before };
            before.rows += rows;
            before.steps += steps;
            before.epochs += steps.div_ceil(part.per_epoch(train.global_batch));
            parts.push(part);
        }
        let global_batch = train.global_batch;
        let (rows, total_steps) = (before.rows, before.steps);
        Ok(Self { rows, global_batch, lanes, total_steps, turns: None, parts: parts.into() })
    }

    /// Steps of each part.
    #[must_use]
    pub fn phases(&self) -> Vec<u64> {
        self.parts.iter().map(|part| part.steps).collect()
    }

    /// The part of a step; steps beyond the last are in the last.
    fn part(&self, step: u64) -> &Part {
        let after = self.parts.partition_point(|part| part.before.steps <= step);
        // Parts without steps begin where the next one does: the last of those that begin here has some.
        &self.parts[after.max(1) - 1]
    }

    /// The part of an epoch, and the epochs and steps of it that came before. Epochs beyond the last are in the last part.
    fn part_of_epoch(&self, epoch: u64) -> (usize, u64) {
        let after = self.parts.partition_point(|part| part.before.epochs <= epoch);
        let part = after.max(1) - 1;
        (part, epoch - self.parts[part].before.epochs)
    }

    /// The steps of an epoch. The last part has as many epochs as are asked for.
    #[must_use]
    pub fn epoch_steps(&self, epoch: u64) -> EpochSteps {
        let (number, within) = self.part_of_epoch(epoch);
        let part = &self.parts[number];
        let whole = match &self.turns {
            Some(turns) => turns.steps(),
            None => part.per_epoch(self.global_batch),
        };
        let first = part.before.steps + within * whole;
        let next = self.parts.get(number + 1).map_or(u64::MAX, |next| next.before.steps);
        EpochSteps { first, end: (first + whole).min(next), whole }
    }

    /// The plan of a job's training section over `rows` usable rows, with `lanes` as resolved at submit.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of(train: &TrainSpec, rows: u64, lanes: u32) -> Result<Self> {
        Self::new(rows, train.global_batch, lanes, train.epochs, train.max_steps)
    }

    /// Usable rows of an epoch.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Lanes of a step.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Steps of an epoch of the first part; the last one is short when `global_batch` does not divide the rows.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        let first = self.parts.first().map_or(self.rows, |part| part.rows);
        match &self.turns {
            Some(turns) => turns.steps(),
            None => first.div_ceil(u64::from(self.global_batch)),
        }
    }

    /// Steps of the whole training.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Epochs done after `steps` steps, with fraction.
    #[must_use]
    pub fn epochs_done(&self, steps: u64) -> f64 {
        let Some(last) = steps.checked_sub(1) else { return 0.0 };
        let (epoch, positions) = self.step(last);
        let part = match &self.turns {
            Some(turns) => ((last % turns.steps()) + 1) as f64 / turns.steps() as f64,
            None => {
                let part = self.part(last);
                (positions.end - part.before.rows) as f64 / part.rows as f64
            }
        };
        epoch as f64 + part
    }

    /// Epoch and positions of a step (from 0): all lanes together. Where tasks take turns, positions count the rows of one
    /// task behind those of the other.
    #[must_use]
    pub fn step(&self, step: u64) -> (u64, Range<u64>) {
        if let Some(turns) = &self.turns {
            let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
            return (epoch, turns.step(epoch, within).1);
        }
        let part = self.part(step);
        let (own, each) = (step - part.before.steps, part.per_epoch(self.global_batch));
        let (epoch, start) = (own / each, own % each * u64::from(self.global_batch));
        let end = (start + u64::from(self.global_batch)).min(part.rows);
        (part.before.epochs + epoch, part.before.rows + start..part.before.rows + end)
    }

    /// The lane's slice of a step: slices are contiguous, in lane order, and the first ones hold one row more when the
    /// step's rows do not divide evenly.
    #[must_use]
    pub fn lane(&self, step: u64, lane: u32) -> LaneStep {
        let (epoch, all) = self.step(step);
        let (count, lanes) = (all.end - all.start, u64::from(self.lanes));
        let (share, more) = (count / lanes, count % lanes);
        let cut = |lane: u64| all.start + (lane * share + lane.min(more)).min(count);
        LaneStep { step, epoch, lane, positions: cut(u64::from(lane))..cut(u64::from(lane) + 1) }
    }
}

/// A [`Plan`] with the seeded order of every epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    plan: Plan,
    key: Key,
    shuffle: bool,
    /// The rows of all parts, where they are not all rows in their order.
    rows: Option<Arc<[u64]>>,
}

impl Order {
    /// The order of a task: each epoch has its own permutation, keyed by (`seed`, `task`, epoch); file order in every
    /// epoch when the data is not shuffled.
    #[must_use]
    pub fn new(plan: Plan, seed: u64, task: &TaskName, data: &DataSpec) -> Self {
        Self { plan, key: Key::seed(seed).named(task.as_str()).named("order"), shuffle: data.shuffle, rows: None }
    }

    /// The same over these rows of the dataset, in order of the plan's parts.
    #[must_use]
    pub fn over(self, rows: Vec<u64>) -> Self {
        Self { rows: Some(rows.into()), ..self }
    }

    /// The order of an opened dataset, for a job's training section with `lanes` as resolved at submit. Where the encoder's
    /// tasks are to be alike in a step, they take turns: every row is then read once to learn its task.
    ///
    /// # Errors
    /// As [`Plan::new`], [`Turns::new`] and [`Dataset::row`].
    pub fn open(
        dataset: &Dataset,
        encoder: &Encoder,
        train: &TrainSpec,
        lanes: u32,
        task: &TaskName,
        data: &DataSpec,
    ) -> Result<Self> {
        let order = Self::new(Plan::of(train, dataset.len(), lanes)?, train.seed, task, data);
        let Some(tasks) = encoder.tasks().filter(|tasks| tasks.alike) else { return Ok(order) };
        let named: Vec<u32> =
            (0..dataset.len()).map(|row| encoder.row_task(&dataset.row(row)?)).collect::<Result<_>>()?;
        let turns = Turns::new(&named, tasks.count, train.global_batch, &tasks.batch_ratio, order.key)?;
        Ok(Self { plan: order.plan.by_task(turns, train), ..order })
    }

    /// The order of a sequence of tasks, each of the rows of some classes, and the rows of each task: every row is read once
    /// to learn its class.
    ///
    /// # Errors
    /// `DATA_EMPTY` naming a task without rows; those of [`Plan::in_parts`] and [`Dataset::row`].
    pub fn by_class(
        dataset: &Dataset,
        encoder: &Encoder,
        train: &TrainSpec,
        lanes: u32,
        task: &TaskName,
        data: &DataSpec,
        splits: &[Vec<u32>],
    ) -> Result<(Self, Vec<Vec<u64>>)> {
        let mut rows = vec![Vec::new(); splits.len()];
        for row in 0..dataset.len() {
            let class = encoder.class(&dataset.row(row)?)?;
            if let Some(split) = class.and_then(|class| splits.iter().position(|split| split.contains(&class))) {
                rows[split].push(row);
            }
        }
        if let Some(task) = rows.iter().position(Vec::is_empty) {
            return Err(code::DATA_EMPTY
                .error(format!("task {task} of the sequence has no row: its classes are {:?}", splits[task]))
                .hint("give rows of these classes, or other `tasks`"));
        }
        let counts: Vec<u64> = rows.iter().map(|rows| rows.len() as u64).collect();
        let plan = Plan::in_parts(train, &counts, lanes)?;
        Ok((Self::new(plan, train.seed, task, data).over(rows.concat()), rows))
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rows that an epoch is made of, in order of position before any shuffling.
    pub fn members(&self, epoch: u64) -> impl Iterator<Item = u64> + '_ {
        let part = &self.plan.parts[self.plan.part_of_epoch(epoch).0];
        let first = part.before.rows;
        (first..first + part.rows).map(|position| self.row_at(position))
    }

    fn row_at(&self, position: u64) -> u64 {
        self.rows.as_ref().and_then(|rows| rows.get(position as usize)).copied().unwrap_or(position)
    }

    /// Position to row in an epoch of a plan with one part, where tasks do not take turns.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Permutation {
        self.permutation(self.plan.rows, epoch)
    }

    fn permutation(&self, rows: u64, epoch: u64) -> Permutation {
        if self.shuffle { Permutation::new(rows, self.key.with(epoch)) } else { Permutation::identity(rows) }
    }

    /// The rows of a lane in a step (from 0).
    #[must_use]
    pub fn lane_rows(&self, step: u64, lane: u32) -> LaneRows {
        if let Some(turns) = &self.plan.turns {
            let at = self.plan.lane(step, lane);
            let key = self.shuffle.then(|| self.key.with(at.epoch));
            return LaneRows { rows: at.positions.clone().map(|position| turns.row(position, key)).collect(), at };
        }
        let (at, part) = (self.plan.lane(step, lane), self.plan.part(step));
        let order = self.permutation(part.rows, at.epoch);
        let first = part.before.rows;
        let row = |position: u64| self.row_at(first + order.row(position - first));
        LaneRows { rows: at.positions.clone().map(row).collect(), at }
    }

    /// The shards ([`SHARD_ROWS`] rows of the dataset each) that a lane reads in a range of steps.
    #[must_use]
    pub fn shards(&self, lane: u32, steps: Range<u64>) -> BTreeSet<u64> {
        steps.flat_map(|step| self.lane_rows(step, lane).rows).map(|row| row / SHARD_ROWS).collect()
    }
}

impl Cursor {
    /// The work of `lanes` from this cursor to the end of the plan: steps in order, lanes in order within a step.
    pub fn work(self, order: Order, lanes: Range<u32>) -> impl Iterator<Item = LaneRows> + Send + 'static {
        let steps = self.step..order.plan.total_steps;
        steps.flat_map(move |step| lanes.clone().map(|lane| order.lane_rows(step, lane)).collect::<Vec<_>>())
    }

    /// The cursor after one more step.
    #[must_use]
    pub fn next(self) -> Self {
        Self { step: self.step + 1 }
    }
}

#[cfg(test)]
mod tests;
