//! Tasks that take turns: every step has rows of one task alone, every epoch each row once. Each task gives all of its
//! steps, full ones and a last short one, and the order of an epoch's steps is drawn from the key of the order (Sung, Cho,
//! Bansal, *VL-Adapter*, 2022). The same on every rank, and computed for any step at any time.

use std::ops::Range;

use pleach_base::rng::Key;
use pleach_base::{Result, code};

use crate::permutation::Permutation;

/// The tasks of a dataset's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// Rows of each task, in the order of the dataset.
    rows: Vec<Vec<u64>>,
    /// Rows of a step of each task.
    batch: Vec<u64>,
    /// The key of the steps' order.
    key: Key,
}

impl Turns {
    /// Of rows whose tasks, by number below `count`, are `tasks` in order: steps of `global_batch` rows, or of its part
    /// that `ratio` says for a task.
    ///
    /// # Errors
    /// `DATA_EMPTY` when a task has no row.
    pub fn new(tasks: &[u32], count: u32, global_batch: u32, ratio: &[f64], key: Key) -> Result<Self> {
        let mut rows = vec![Vec::new(); count as usize];
        for (row, task) in tasks.iter().enumerate() {
            if let Some(own) = rows.get_mut(*task as usize) {
                own.push(row as u64);
            }
        }
        if let Some(task) = rows.iter().position(Vec::is_empty) {
            return Err(code::DATA_EMPTY
                .error(format!("no row names task {task} of {count}"))
                .hint("give every task rows, or leave it out of the list"));
        }
        let share = |task: usize| f64::from(global_batch) * ratio.get(task).copied().unwrap_or(1.0);
        let batch = (0..rows.len()).map(|task| (share(task).round() as u64).max(1)).collect();
        Ok(Self { rows, batch, key: key.named("turns") })
    }

    /// Steps of an epoch.
    pub(crate) fn steps(&self) -> u64 {
        (0..self.rows.len()).map(|task| self.steps_of(task)).sum()
    }

    fn steps_of(&self, task: usize) -> u64 {
        (self.rows[task].len() as u64).div_ceil(self.batch[task])
    }

    /// The task of a step, and its positions among all rows put in order by task. `within` is the step's number in its
    /// epoch.
    pub(crate) fn step(&self, epoch: u64, within: u64) -> (usize, Range<u64>) {
        let mut turn = Permutation::new(self.steps(), self.key.with(epoch)).row(within);
        let mut first = 0;
        for (task, rows) in self.rows.iter().enumerate() {
            let (steps, rows) = (self.steps_of(task), rows.len() as u64);
            if turn < steps {
                let start = turn * self.batch[task];
                return (task, first + start..first + (start + self.batch[task]).min(rows));
            }
            turn -= steps;
            first += rows;
        }
        (0, first..first)
    }

    /// The row at a position: in each task's rows by a permutation of its own, or as they are without a key.
    pub(crate) fn row(&self, position: u64, key: Option<Key>) -> u64 {
        let mut at = position;
        for (task, rows) in self.rows.iter().enumerate() {
            let count = rows.len() as u64;
            if at < count {
                let order = match key {
                    Some(key) => Permutation::new(count, key.with(task as u64)),
                    None => Permutation::identity(count),
                };
                return rows[order.row(at) as usize];
            }
            at -= count;
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn turns() -> Turns {
        let tasks: Vec<u32> = (0..31).map(|row| if row % 5 == 0 { 1 } else { 2 * (row % 2) }).collect();
        Turns::new(&tasks, 3, 4, &[1.0, 0.5], Key::seed(3)).unwrap()
    }

    #[test]
    fn an_epoch_has_every_row_once_and_every_step_one_task() {
        let turns = turns();
        for epoch in 0..3 {
            let key = Some(Key::seed(9).with(epoch));
            let mut seen = BTreeSet::new();
            let mut order = Vec::new();
            for within in 0..turns.steps() {
                let (task, positions) = turns.step(epoch, within);
                assert!(positions.end - positions.start <= [4, 2, 4][task], "step {within}");
                order.push(task);
                for row in positions.map(|position| turns.row(position, key)) {
                    assert!(turns.rows[task].contains(&row), "row {row} in a step of task {task}");
                    assert!(seen.insert(row), "row {row} twice");
                }
            }
            assert_eq!(seen.len(), 31);
            assert!(!order.is_sorted(), "tasks take turns: {order:?}");
        }
        let order = |epoch| (0..turns.steps()).map(|within| turns.step(epoch, within)).collect::<Vec<_>>();
        assert_ne!(order(0), order(1));
    }

    #[test]
    fn a_task_without_rows_is_refused() {
        let error = Turns::new(&[0, 2], 3, 4, &[], Key::seed(3)).unwrap_err();
        assert_eq!(error.code(), code::DATA_EMPTY);
        assert!(error.message().contains("task 1"), "{error}");
    }
}
