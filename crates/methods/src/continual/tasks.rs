//! Which classes each task of a sequence brings.

use std::collections::BTreeSet;

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;

/// The classes of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Split {
    /// Their numbers.
    Classes(Vec<u32>),
    /// The same under a name.
    Named {
        /// Their numbers.
        classes: Vec<u32>,
    },
}

impl Split {
    fn classes(&self) -> &[u32] {
        match self {
            Self::Classes(classes) | Self::Named { classes } => classes,
        }
    }
}

/// Refuses tasks without classes and classes of two tasks.
///
/// # Errors
/// `METHOD_CONFIG`.
pub(crate) fn check(tasks: &[Split]) -> Result<()> {
    if tasks.is_empty() {
        return Err(refuse("tasks", "there is none"));
    }
    let mut seen = BTreeSet::new();
    for (index, task) in tasks.iter().enumerate() {
        if task.classes().is_empty() {
            return Err(refuse(&format!("tasks[{index}]"), "has no class"));
        }
        if let Some(twice) = task.classes().iter().find(|class| !seen.insert(**class)) {
            return Err(refuse(&format!("tasks[{index}]"), &format!("class {twice} is of two tasks")));
        }
    }
    Ok(())
}

/// The classes of every task on a model with so many: as listed, or else `first` and then `more` at a time in order.
///
/// # Errors
/// `METHOD_CONFIG` for classes that the model does not have.
pub(crate) fn of(tasks: Option<&[Split]>, first: u32, more: u32, total: u32) -> Result<Vec<Vec<u32>>> {
    let Some(tasks) = tasks else {
        if first == 0 || more == 0 || first > total || !(total - first).is_multiple_of(more) {
            let why = format!("{first} and then {more} at a time do not make the model's {total} classes");
            return Err(refuse("tasks", &why));
        }
        let starts = (first..total).step_by(more as usize);
        let rest = starts.map(|start| (start..start + more).collect());
        return Ok(std::iter::once((0..first).collect()).chain(rest).collect());
    };
    let all: Vec<Vec<u32>> = tasks.iter().map(|task| task.classes().to_vec()).collect();
    match all.iter().flatten().find(|class| **class >= total) {
        Some(class) => Err(refuse("tasks", &format!("the model has no class {class}, only {total}"))),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_cut_in_order_or_as_listed() {
        assert_eq!(of(None, 2, 3, 8).unwrap(), [vec![0, 1], vec![2, 3, 4], vec![5, 6, 7]]);
        assert!(of(None, 2, 3, 9).is_err());
        let listed = [Split::Classes(vec![4, 0]), Split::Named { classes: vec![1] }];
        check(&listed).unwrap();
        assert_eq!(of(Some(&listed), 1, 1, 5).unwrap(), [vec![4, 0], vec![1]]);
        assert!(of(Some(&listed), 1, 1, 4).unwrap_err().message().contains("class 4"));
        let twice = [Split::Classes(vec![0]), Split::Classes(vec![1, 0])];
        assert_eq!(check(&twice).unwrap_err().message(), "tasks[1]: class 0 is of two tasks");
    }
}
