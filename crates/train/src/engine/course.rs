//! The course of a task that learns classes task by task: at the end of each the method's look at the task's rows, and
//! the accuracies on all tasks so far.
//!
//! All of it is part of the step that ends a task: what it changes is state like any other, so a training that is cut off
//! anywhere goes on to the same result. Rows are looked at lane by lane and added up in lane order, whatever the number
//! of ranks.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::{Result, code};
use pleach_comm::{Collective, strict_sum};
use pleach_methods::continual::{Moments, Sequence, Survey, measures};
use pleach_nn::Output;
use tch::{Kind, Tensor};

use super::front::with_virtual;
use super::objective::wrong_head;
use super::pass::{Mode, PassInput, forward};
use super::step::Machine;
use super::task::Task;
use crate::observer::Level;
use crate::{agree, lanes};

/// Rows and their classes.
#[derive(Debug)]
pub struct Labelled {
    /// The rows, on the device.
    pub input: PassInput,
    /// Their classes.
    pub classes: Vec<u32>,
}

/// The rows of every task of a sequence.
pub trait CourseRows: Send + Sync {
    /// Rows to train on: those of this lane, in batches that are the same whoever asks.
    ///
    /// # Errors
    /// Those of reading them.
    fn train(&self, task: usize, lane: u32) -> Result<Vec<Labelled>>;

    /// Rows to evaluate on; none where there are none.
    ///
    /// # Errors
    /// Those of reading them.
    fn eval(&self, task: usize) -> Result<Vec<Labelled>>;
}

/// A sequence of tasks, as the trainer goes through it.
#[derive(Clone)]
pub struct Course {
    /// The classes of every task.
    pub splits: Vec<Vec<u32>>,
    /// Steps of every task.
    pub phases: Vec<u64>,
    /// Lanes that a task's rows are looked at in.
    pub lanes: u32,
    /// The rows.
    pub rows: Arc<dyn CourseRows>,
}

/// Ends a task: what the method wants to know of its rows, and what it has come to.
pub(super) fn end(machine: &Machine<'_>, task: &Task, number: usize) -> Result<()> {
    let (Some(course), Some(sequence)) = (&task.course, task.setup.adapter.config().sequence()) else { return Ok(()) };
    let _no_grad = tch::no_grad_guard();
    let parts = task.setup.adapter.parts();
    let passes = sequence.surveys(number);
    if !passes.is_empty() {
        let found = survey(machine, task, course, number, &passes)?;
        for warning in sequence.surveyed(&parts, number, &found)? {
            machine.observer.log(Level::Warn, &format!("{}: task {number}: {warning}", task.setup.name));
        }
    }
    let reached = accuracies(machine, task, course, sequence, number + 1)?;
    sequence.advance(&parts, number, &reached)
}

/// Accuracies on the first `tasks` tasks, each among all classes that have begun; NaN for those without rows. A collective
/// call.
fn accuracies(
    machine: &Machine<'_>,
    task: &Task,
    course: &Course,
    sequence: &dyn Sequence,
    tasks: usize,
) -> Result<Vec<f64>> {
    let parts = task.setup.adapter.parts();
    let mut counts = Vec::with_capacity(2 * tasks);
    for number in 0..tasks {
        let (mut right, mut all) = (0.0, 0.0);
        let batches = course.rows.eval(number)?;
        for rows in batches.into_iter().skip(machine.group.rank()).step_by(machine.group.world()) {
            machine.observer.progress();
            agree::alive(machine.group)?;
            let classes: Vec<i64> = rows.classes.iter().map(|class| i64::from(*class)).collect();
            let input = laid_out(machine, task, rows.input);
            let scores = sequence.scores(&parts, &|pass| outputs(machine, task, &input, pass))?;
            let classes = Tensor::from_slice(&classes).to_device(scores.device());
            right += scores.argmax(-1, false).eq_tensor(&classes).sum(Kind::Int64).int64_value(&[]) as f64;
            all += classes.numel() as f64;
        }
        counts.extend([right, all]);
    }
    let sums = agree::sums(machine.group, &counts)?;
    Ok(sums.chunks(2).map(|pair| if pair[1] > 0.0 { pair[0] / pair[1] } else { f64::NAN }).collect())
}

/// The state of the sequence in numbers: accuracies now, and the measures of the matrix so far. A collective call.
pub(super) fn metrics(machine: &Machine<'_>, task: &Task) -> Result<Option<BTreeMap<String, f64>>> {
    let (Some(course), Some(sequence)) = (&task.course, task.setup.adapter.config().sequence()) else {
        return Ok(None);
    };
    let _no_grad = tch::no_grad_guard();
    let matrix = sequence.accuracies(&task.setup.adapter.parts())?;
    let at = task.step.checked_sub(1).map_or(0, |_| task.now().phase);
    let ended = task.step > 0 && task.now().ends_phase();
    let row = match matrix.get(at) {
        Some(row) if ended => row.clone(),
        _ => accuracies(machine, task, course, sequence, at + 1)?,
    };
    let mut found = BTreeMap::new();
    let measured: Vec<f64> = row.iter().copied().filter(|accuracy| !accuracy.is_nan()).collect();
    for (number, accuracy) in row.iter().enumerate().filter(|(_, accuracy)| !accuracy.is_nan()) {
        found.insert(format!("accuracy_task_{number}"), *accuracy);
    }
    if !measured.is_empty() {
        found.insert("average_accuracy".to_owned(), measured.iter().sum::<f64>() / measured.len() as f64);
    }
    if let Some(measures) = measures(&matrix).filter(|_| ended) {
        found.insert("average_incremental_accuracy".to_owned(), measures.incremental);
        found.insert("forgetting".to_owned(), measures.forgetting);
    }
    Ok(Some(found))
}

/// Moments of what the model gives in each of these passes for the rows of a task, by class. A collective call.
fn survey(machine: &Machine<'_>, task: &Task, course: &Course, number: usize, passes: &[u32]) -> Result<Survey> {
    let group = machine.group;
    let classes = &course.splits[number];
    let mut width = 0;
    let mut own = Vec::new();
    for lane in lanes::of_rank(course.lanes, group.rank(), group.world()) {
        let mut seen: Vec<Vec<Tensor>> = (0..passes.len() * classes.len()).map(|_| Vec::new()).collect();
        for rows in course.rows.train(number, lane)? {
            machine.observer.progress();
            agree::alive(group)?;
            let input = laid_out(machine, task, rows.input);
            for (index, pass) in passes.iter().enumerate() {
                let output = outputs(machine, task, &input, *pass)?;
                width = output.size()[1];
                for (place, class) in classes.iter().enumerate() {
                    let mine = rows.classes.iter().enumerate().filter(|(_, other)| *other == class);
                    let mine: Vec<i64> = mine.map(|(row, _)| row as i64).collect();
                    let mine = Tensor::from_slice(&mine).to_device(output.device());
                    seen[index * classes.len() + place].push(output.index_select(0, &mine));
                }
            }
        }
        own.push((lane as usize, seen));
    }
    // A rank may have no lane, and a lane no row: the width is what the others say.
    width = agree::maxima(group, &[width as f64])?[0] as i64;
    let cells = 1 + width + width * width;
    let shape = [(passes.len() * classes.len()) as i64, cells];
    let sums: Vec<_> = own.iter().map(|(lane, seen)| (*lane, summed(seen, width, group))).collect();
    let all = strict_sum(group, &sums, course.lanes as usize, &shape, Kind::Double)?;
    let mut found = Survey::new();
    for (row, (pass, class)) in
        passes.iter().flat_map(|pass| classes.iter().map(move |class| (pass, class))).enumerate()
    {
        let cells = all.get(row as i64);
        let moments = Moments {
            count: cells.double_value(&[0]),
            sum: cells.narrow(0, 1, width),
            products: cells.narrow(0, 1 + width, width * width).reshape([width, width]),
        };
        found.insert((*pass, *class), moments);
    }
    Ok(found)
}

/// Count, sum and products of each list of outputs, a row each.
fn summed(seen: &[Vec<Tensor>], width: i64, group: &dyn Collective) -> Tensor {
    let row = |outputs: &Vec<Tensor>| {
        if outputs.is_empty() {
            return Tensor::zeros([1 + width + width * width], (Kind::Double, group.device()));
        }
        let moments = Moments::of(&Tensor::cat(outputs, 0));
        let count = Tensor::from_slice(&[moments.count]).to_device(group.device());
        Tensor::cat(&[count, moments.sum, moments.products.flatten(0, -1)], 0)
    };
    Tensor::stack(&seen.iter().map(row).collect::<Vec<_>>(), 0)
}

fn laid_out(machine: &Machine<'_>, task: &Task, input: PassInput) -> PassInput {
    with_virtual(input, task.setup.adapter.config().virtual_tokens(), &machine.model.config().info().reads)
}

/// What the model gives in a pass of evaluation.
fn outputs(machine: &Machine<'_>, task: &Task, input: &PassInput, pass: u32) -> Result<Tensor> {
    match forward(machine.model, &task.setup.adapter, input, Mode { pass, ..Mode::EVAL }) {
        Output::Classes(rows) => Ok(rows.to_kind(Kind::Float)),
        _ => Err(wrong_head(task.setup.objective)),
    }
}

impl Course {
    /// # Errors
    /// `INTERNAL` when the parts do not belong together.
    pub(super) fn check(&self) -> Result<()> {
        match self.splits.len() == self.phases.len() && !self.splits.is_empty() {
            true => Ok(()),
            false => Err(code::INTERNAL.error("a sequence has as many tasks as its training has parts")),
        }
    }
}
