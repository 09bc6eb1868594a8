//! Several tasks in one pass: the frozen model runs once for the rows of all of them, each task's hooks see its own rows,
//! and one backward pass fills the leaves of all.
//!
//! Nothing of a task depends on who shares its passes: neither its rows, its draws, its loss and its denominators, nor, in
//! strict mode, a single bit. There its sequences lie end to end whether it is alone or not, and rows that are too few
//! for the processor to treat them as it treats many have a pass to themselves.

use pleach_base::Result;
use pleach_nn::{Backbone, Inputs, Layout, Mixing, Output};
use pleach_spec::job::Determinism;
use tch::Tensor;

use super::batch::{MicroBatch, StepBatch};
use super::blockwise;
use super::objective::{Objective, wrong_head};
use super::pass::{Mode, PassInput, Rider, forward_of};
use super::step::{Computed, Machine, Unit, Work, conclude, counted, note_broken, terms, units};
use super::task::{Pending, Task};
use crate::agree;
use crate::loss::{self, Counts};
use crate::phase::Phase;
use crate::times::Stage;

/// Most tokens of several tasks in one pass: beyond, the frozen model's products are as fast as they get and memory alone
/// grows. A micro-batch of one task may have more; it then has the pass to itself. Where `train.micro_batch` says how many
/// rows go through the model at once, that holds for the rows of all.
const MOST_TOKENS: usize = 4096;

/// Rows from which on a product of matrices gives each row the same bits, whatever their number.
const ALIKE: usize = 17;

/// Why a task makes its passes by itself; `None` when it can share them.
pub(super) fn apart(model: &dyn Backbone, task: &Task) -> Option<&'static str> {
    let (adapter, mixing) = (&task.setup.adapter, model.config().info().mixing);
    let config = adapter.config();
    let strict = task.setup.determinism == Determinism::Strict;
    let reasons = [
        (task.setup.objective != Objective::CausalLm, "its loss is not that of a language model"),
        (config.passes().weights.len() > 1, "its method makes several passes over each batch"),
        (task.couples(), "its method's loss looks at all rows of a step"),
        (config.scores(), "its method needs a scoring pass"),
        (config.sums(adapter.plan()).is_some(), "its method runs the model's parts with adapters of its own choice"),
        (config.sequence().is_some(), "it learns a sequence of tasks"),
        (config.row_tasks().is_some(), "its rows are of tasks of their own"),
        (config.segments().is_some(), "its rows are documents cut into segments"),
        (config.modalities().is_some(), "its tokens are of several modalities"),
        (mixing == Mixing::Lengths, "the model looks at the longest sequence of a batch"),
        (strict && mixing > Mixing::None, "the model rounds by who shares a batch, and strict mode promises bits"),
    ];
    reasons.into_iter().find_map(|(holds, why)| holds.then_some(why))
}

/// Whether a task's rows lie end to end even when it is alone, so that its bits are those that it has with others.
pub(super) fn keeps_bits(model: &dyn Backbone, task: &Task) -> bool {
    task.setup.determinism == Determinism::Strict && apart(model, task).is_none()
}

/// Computes and reduces the gradients of one step of each task. A collective call.
pub(super) fn forward_backward(machine: &Machine<'_>, parts: &[(&Task, &StepBatch)]) -> Result<Vec<Pending>> {
    let rows: Vec<Vec<Unit>> =
        parts.iter().map(|(task, batch)| units(machine, task, batch, true)).collect::<Result<_>>()?;
    let local: Vec<f64> = rows.iter().flat_map(|units| counted(units)).collect();
    machine.watch.enter(Stage::Wait);
    let totals = agree::sums(machine.group, &local)?;
    let mut members: Vec<_> = parts
        .iter()
        .zip(&rows)
        .zip(totals.chunks(2))
        .map(|((part, units), totals)| Member::new(part.0, units, totals))
        .collect();
    loop {
        let next = members.iter_mut().enumerate().filter_map(|(number, member)| Some((number, member.next()?)));
        let aboard: Vec<_> = next.collect();
        if aboard.is_empty() {
            break;
        }
        for pass in passes(&members, aboard) {
            run(machine, &mut members, &pass)?;
        }
    }
    machine.observer.phase(Phase::AfterBackward);
    let concluded = members.into_iter().zip(parts).map(|(member, (task, batch))| {
        let work = member.work(batch.lane_rows.len());
        Ok(conclude(machine, task, work)?.of(batch))
    });
    concluded.collect()
}

/// One task's part of a step.
struct Member<'a> {
    task: &'a Task,
    units: &'a [Unit],
    totals: [f64; 2],
    denominators: Counts,
    /// The unit at hand, and how many of its micro-batches have gone through the model.
    at: (usize, usize),
    /// Loss of the unit at hand.
    sum: f64,
    computed: Vec<Computed>,
    broken: Vec<u64>,
    seconds: f64,
}

impl<'a> Member<'a> {
    fn new(task: &'a Task, units: &'a [Unit], totals: &[f64]) -> Self {
        let totals = [totals[0], totals[1]];
        let denominators = task.setup.objective.counts(totals[0]);
        let (computed, broken) = (Vec::new(), Vec::new());
        Self { task, units, totals, denominators, at: (0, 0), sum: 0.0, computed, broken, seconds: 0.0 }
    }

    /// The next micro-batch; gradients of the units before its own are taken off the leaves.
    fn next(&mut self) -> Option<&'a MicroBatch> {
        while let Some(unit) = self.units.get(self.at.0) {
            if let Some(micro) = unit.micro_batches.get(self.at.1) {
                self.at.1 += 1;
                return Some(micro);
            }
            let grads = self.task.take_grads();
            note_broken(&grads, unit, &mut self.broken);
            let sum = std::mem::take(&mut self.sum);
            self.computed.push(Computed { number: unit.number, grads, sum, sums: None });
            self.at = (self.at.0 + 1, 0);
        }
        None
    }

    /// What the loss is differentiated from, of the output for its rows.
    fn total(&mut self, micro: &MicroBatch, logits: Tensor) -> Result<Option<Tensor>> {
        let objective = self.task.setup.objective;
        let Some(targets) = &micro.targets else { return Err(wrong_head(objective)) };
        let terms = terms(self.task, objective, &Output::Tokens(logits), targets)?;
        let value: f64 = terms.iter().map(|term| term.coefficient * term.sum.double_value(&[])).sum();
        if !value.is_finite() {
            self.broken.extend(&micro.samples);
        }
        self.sum += value;
        Ok(loss::total(&terms, &self.denominators))
    }

    fn work(self, lanes: usize) -> Work {
        let Self { computed, broken: broken_samples, seconds: compute_seconds, totals, .. } = self;
        Work { computed, broken_samples, batch_term: 0.0, compute_seconds, lanes, totals, present: Vec::new() }
    }
}

/// Micro-batches with the numbers of their members.
type Aboard<'a> = Vec<(usize, &'a MicroBatch)>;

/// Who goes with whom: in order, as many as have room.
fn passes<'a>(members: &[Member<'_>], aboard: Aboard<'a>) -> Vec<Aboard<'a>> {
    let mut passes: Vec<Aboard<'a>> = Vec::new();
    // Where the next one may join, and the tokens and sequences that are there.
    let (mut open, mut filled): (Option<usize>, _) = (None, [0, 0]);
    for (number, micro) in aboard {
        let (layout, setup) = (&micro.passes[0].layout, &members[number].task.setup);
        let own = [layout.tokens(), layout.sequences()];
        let more = [filled[0] + own[0], filled[1] + own[1]];
        let rows = setup.micro_batch.unwrap_or(usize::MAX);
        match open {
            _ if setup.determinism == Determinism::Strict && own[0] < ALIKE => passes.push(vec![(number, micro)]),
            Some(pass) if more[0] <= MOST_TOKENS && more[1] <= rows => {
                passes[pass].push((number, micro));
                filled = more;
            }
            _ => {
                (open, filled) = (Some(passes.len()), own);
                passes.push(vec![(number, micro)]);
            }
        }
    }
    passes
}

/// One pass forward and backward.
fn run(machine: &Machine<'_>, members: &mut [Member<'_>], aboard: &Aboard<'_>) -> Result<()> {
    machine.watch.enter(Stage::Forward);
    machine.observer.progress();
    agree::alive(machine.group)?;
    let begun = machine.worked();
    let input = joined(aboard, machine.model.device());
    let tasks: Vec<&Task> = aboard.iter().map(|(number, _)| members[*number].task).collect();
    let sequences = |micro: &MicroBatch| micro.passes[0].layout.sequences();
    let riders: Vec<_> =
        tasks.iter().zip(aboard).map(|(task, (_, micro))| Rider::new(task, sequences(micro))).collect();
    let tokens: Vec<_> = aboard.iter().map(|(_, micro)| micro.passes[0].layout.tokens() as i64).collect();
    let mut scalar = |output: &Output| {
        let Output::Tokens(logits) = output else { return Err(wrong_head(Objective::CausalLm)) };
        let mut sum: Option<Tensor> = None;
        for ((number, micro), logits) in aboard.iter().zip(logits.split_with_sizes(&tokens, 0)) {
            let total = members[*number].total(micro, logits)?.filter(Tensor::requires_grad);
            sum = match (sum, total) {
                (Some(sum), Some(total)) => Some(sum + total),
                (sum, total) => sum.or(total),
            };
        }
        machine.watch.enter(Stage::Backward);
        Ok(sum)
    };
    let mode = Mode { train: true, step: 0, pass: 0 };
    if tasks.iter().any(|task| task.setup.checkpointing) {
        blockwise::backward(machine.model, &riders, &input, mode, &mut scalar, &mut || None, None)?;
    } else {
        let output = forward_of(machine.model, &riders, &input, mode);
        let total = scalar(&output)?;
        drop(output);
        if let Some(total) = total {
            total.backward();
        }
    }
    let seconds = machine.worked().saturating_sub(begun).as_secs_f64();
    let all = tokens.iter().sum::<i64>().max(1) as f64;
    for ((number, _), tokens) in aboard.iter().zip(&tokens) {
        members[*number].seconds += seconds * *tokens as f64 / all;
    }
    Ok(())
}

/// The rows of all as one batch.
fn joined(aboard: &Aboard<'_>, device: tch::Device) -> PassInput {
    let parts: Vec<&PassInput> = aboard.iter().map(|(_, micro)| &micro.passes[0]).collect();
    let layouts: Vec<&Layout> = parts.iter().map(|part| &part.layout).collect();
    let names = parts.first().map(|part| part.inputs.0.keys()).into_iter().flatten();
    let join = |name: &String| {
        let tensors: Vec<_> = parts.iter().filter_map(|part| part.inputs.get(name)).collect();
        (name.clone(), Tensor::cat(&tensors, 0))
    };
    PassInput::new(Inputs(names.map(join).collect()), Layout::behind_each_other(&layouts, device))
}
