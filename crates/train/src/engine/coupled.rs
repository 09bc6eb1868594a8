//! Steps of adapters whose loss has a term that depends on sums over the global batch, such as the balance of a router.
//!
//! All rows go forward first and the sums are added over units and ranks. What the term's derivative by the sums is then
//! is known, and it is a constant for each row: the rows go backward with `sum_i (dL/ds_i) s_i` of their own sums added to
//! their loss. The result does not know how rows were cut.

use pleach_base::Result;
use pleach_comm::{Collective, ReduceOp, strict_sum};
use pleach_spec::job::Determinism;
use tch::{Kind, Tensor};

use super::batch::MicroBatch;
use super::blockwise;
use super::objective::Objective;
use super::pass::{Mode, Rider, forward, forward_with};
use super::peers::Linked;
use super::step::{Computed, Machine, Unit, note_broken, terms};
use super::task::Task;
use crate::agree;
use crate::loss::{self, Counts};
use crate::times::Stage;

/// The rows of a step on this rank.
pub(super) struct Rows<'a> {
    pub(super) objective: Objective,
    pub(super) units: &'a [Unit],
    /// Lanes of the step.
    pub(super) lanes: usize,
    pub(super) denominators: &'a Counts,
}

/// A micro-batch that went forward: its loss, and its sums, with their graphs.
pub(super) struct Forwarded {
    pub(super) total: Option<Tensor>,
    pub(super) sums: Option<Tensor>,
}

/// What the units gave, and the value of the term of the whole batch.
pub(super) fn row_by_row(
    machine: &Machine<'_>,
    task: &Task,
    rows: &Rows<'_>,
    broken: &mut Vec<u64>,
) -> Result<(Vec<Computed>, f64)> {
    let micro_batches = || rows.units.iter().flat_map(|unit| &unit.micro_batches);
    // When rows are cut for memory's sake their graphs must not all live at once: forward without, then again with one.
    let keep = !task.setup.checkpointing && (task.setup.micro_batch.is_none() || micro_batches().count() <= 1);
    let (mut computed, mut kept) = (Vec::new(), Vec::new());
    for unit in rows.units {
        let (mut sum, mut sums) = (0.0, None);
        for micro in &unit.micro_batches {
            machine.observer.progress();
            agree::alive(machine.group)?;
            let mut run = || first(machine, task, rows, micro, &mut sum, broken, None);
            let forwarded = if keep { run()? } else { tch::no_grad(run)? };
            sums = plus(sums, forwarded.sums.as_ref().map(|sums| sums.detach().to_kind(Kind::Double)));
            kept.push(keep.then_some(forwarded));
        }
        computed.push(Computed { number: unit.number, grads: Tensor::new(), sum, sums });
    }
    let all = machine.exchange(|| reduced(machine.group, task, rows.lanes, &computed))?;
    let (term, cotangent) = derivative(task, all.as_ref());
    machine.watch.enter(Stage::Backward);
    let mut kept = kept.into_iter();
    for (unit, computed) in rows.units.iter().zip(&mut computed) {
        for micro in &unit.micro_batches {
            machine.observer.progress();
            agree::alive(machine.group)?;
            second(machine, task, rows, micro, kept.next().flatten(), cotangent.as_ref())?;
        }
        computed.grads = task.take_grads();
        note_broken(&computed.grads, unit, broken);
    }
    Ok((computed, term))
}

pub(super) fn plus(sum: Option<Tensor>, more: Option<Tensor>) -> Option<Tensor> {
    match (sum, more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    }
}

pub(super) fn mode(task: &Task) -> Mode {
    Mode { train: true, step: task.step, pass: 0 }
}

/// Forward alone.
pub(super) fn first(
    machine: &Machine<'_>,
    task: &Task,
    rows: &Rows<'_>,
    micro: &MicroBatch,
    sum: &mut f64,
    broken: &mut Vec<u64>,
    peers: Option<&Linked<'_>>,
) -> Result<Forwarded> {
    let Some(targets) = &micro.targets else { return Ok(Forwarded { total: None, sums: None }) };
    let adapter = &task.setup.adapter;
    let peers = peers.map(|peers| peers as &dyn pleach_nn::Peers);
    let output = forward_with(machine.model, adapter, &micro.passes[0], mode(task), peers);
    let terms = terms(task, rows.objective, &output, targets)?;
    let value: f64 = terms.iter().map(|term| term.coefficient * term.sum.double_value(&[])).sum();
    if !value.is_finite() {
        broken.extend(&micro.samples);
    }
    *sum += value;
    Ok(Forwarded { total: loss::total(&terms, rows.denominators), sums: own(task) })
}

/// What the hooks added since the last call, with its graph.
pub(super) fn own(task: &Task) -> Option<Tensor> {
    let adapter = &task.setup.adapter;
    adapter.board().take_sums(adapter.config().sums(adapter.plan())?)
}

/// Backward, from what was kept or from another run forward.
fn second(
    machine: &Machine<'_>,
    task: &Task,
    rows: &Rows<'_>,
    micro: &MicroBatch,
    kept: Option<Forwarded>,
    cotangent: Option<&Tensor>,
) -> Result<()> {
    let weigh = |sums: Option<Tensor>| weighed(sums, cotangent);
    let Some(targets) = &micro.targets else { return Ok(()) };
    let adapter = &task.setup.adapter;
    if task.setup.checkpointing {
        let mut scalar = |output: &pleach_nn::Output| {
            Ok(loss::total(&terms(task, rows.objective, output, targets)?, rows.denominators))
        };
        return blockwise::backward(
            machine.model,
            &[Rider::new(task, micro.passes[0].layout.sequences())],
            &micro.passes[0],
            mode(task),
            &mut scalar,
            &mut || weigh(own(task)),
            None,
        );
    }
    let Forwarded { total, sums } = match kept {
        Some(kept) => kept,
        None => {
            let output = forward(machine.model, adapter, &micro.passes[0], mode(task));
            let terms = terms(task, rows.objective, &output, targets)?;
            Forwarded { total: loss::total(&terms, rows.denominators), sums: own(task) }
        }
    };
    if let Some(total) = plus(total, weigh(sums)).filter(Tensor::requires_grad) {
        total.backward();
    }
    Ok(())
}

/// What sums contribute to the loss to be differentiated.
pub(super) fn weighed(sums: Option<Tensor>, cotangent: Option<&Tensor>) -> Option<Tensor> {
    let sums = sums?;
    Some((&sums * cotangent?.to_kind(sums.kind())).sum(None::<Kind>))
}

/// The value of the term, and its derivative by the sums.
pub(super) fn derivative(task: &Task, sums: Option<&Tensor>) -> (f64, Option<Tensor>) {
    let Some(sums) = sums else { return (0.0, None) };
    let leaf = sums.detach().copy().set_requires_grad(true);
    let Some(term) = task.setup.adapter.config().batch_loss(&leaf) else { return (0.0, None) };
    if term.requires_grad() {
        term.backward();
    }
    let gradient = leaf.grad();
    (term.double_value(&[]), gradient.defined().then_some(gradient))
}

/// The sums of all units of all ranks; `None` for adapters that have none. A collective call for those that have.
pub(super) fn reduced(
    group: &dyn Collective,
    task: &Task,
    lanes: usize,
    computed: &[Computed],
) -> Result<Option<Tensor>> {
    let adapter = &task.setup.adapter;
    let Some([rows, width]) = adapter.config().sums(adapter.plan()) else { return Ok(None) };
    let shape = [rows as i64, width as i64];
    let none = || Tensor::zeros(shape, (Kind::Double, group.device()));
    let of = |unit: &Computed| unit.sums.as_ref().map_or_else(none, |sums| sums.to_device(group.device()));
    Ok(Some(match task.setup.determinism {
        Determinism::Fast => {
            let mut all = computed.iter().map(of).reduce(|sum, one| sum + one).unwrap_or_else(none);
            group.all_reduce(&mut all, ReduceOp::Sum)?;
            all
        }
        Determinism::Strict => {
            let units: Vec<_> = computed.iter().map(|unit| (unit.number, of(unit))).collect();
            strict_sum(group, &units, lanes, &shape, Kind::Double)?
        }
    }))
}
