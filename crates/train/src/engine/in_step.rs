//! Steps of adapters whose hooks give rows to other ranks: all ranks go through the model block by block together, as often
//! as the rank with the most micro-batches. Who has no rows left sends a token of no meaning along, whose loss nobody
//! counts, and works for the others.

use pleach_base::Result;
use pleach_nn::{Inputs, Layout, Peers};
use tch::{Kind, Tensor};

use super::blockwise;
use super::coupled::{self, Rows, mode, own, weighed};
use super::pass::{PassInput, Rider, forward_with};
use super::peers::Linked;
use super::step::{Computed, Machine, note_broken};
use super::task::Task;
use crate::times::Stage;
use crate::{agree, loss};

/// As [`coupled::row_by_row`]. A collective call.
pub(super) fn row_by_row(
    machine: &Machine<'_>,
    task: &Task,
    rows: &Rows<'_>,
    broken: &mut Vec<u64>,
) -> Result<(Vec<Computed>, f64)> {
    let (peers, adapter) = (Linked::new(machine.group), &task.setup.adapter);
    let mine: Vec<_> =
        rows.units.iter().flat_map(|unit| &unit.micro_batches).filter(|micro| micro.targets.is_some()).collect();
    let rounds = agree::maxima(machine.group, &[mine.len() as f64])?[0] as usize;
    let idle = idle(machine);
    drop(adapter.board().take_crossings());
    let (mut sum, mut sums) = (0.0, None);
    for round in 0..rounds {
        machine.observer.progress();
        agree::alive(machine.group)?;
        match mine.get(round) {
            Some(micro) => {
                let run = || coupled::first(machine, task, rows, micro, &mut sum, broken, Some(&peers));
                let forwarded = tch::no_grad(run)?;
                sums = coupled::plus(sums, forwarded.sums.map(|sums| sums.detach().to_kind(Kind::Double)));
            }
            None => {
                let run = || forward_with(machine.model, adapter, &idle, mode(task), Some(&peers as &dyn Peers));
                drop(tch::no_grad(run));
                drop(own(task));
            }
        }
        peers.check()?;
    }
    // One unit a rank, whether it has rows or not: gradients of experts come from the rows of others too.
    let mut computed = Computed { number: machine.group.rank(), grads: Tensor::new(), sum, sums };
    let all = coupled::reduced(machine.group, task, rows.lanes, std::slice::from_ref(&computed))?;
    let (term, cotangent) = coupled::derivative(task, all.as_ref());
    machine.watch.enter(Stage::Backward);
    for round in 0..rounds {
        machine.observer.progress();
        agree::alive(machine.group)?;
        let micro = mine.get(round);
        let input = micro.map_or(&idle, |micro| &micro.passes[0]);
        let mut scalar = |output: &pleach_nn::Output| {
            let targets = micro.and_then(|micro| micro.targets.as_ref());
            let terms = targets.map(|targets| rows.objective.terms(output, targets)).transpose()?;
            Ok(terms.and_then(|terms| loss::total(&terms, rows.denominators)))
        };
        let mut beside = || {
            let sums = own(task);
            weighed(sums.filter(|_| micro.is_some()), cotangent.as_ref())
        };
        let riders = [Rider::new(task, input.layout.sequences())];
        blockwise::backward(machine.model, &riders, input, mode(task), &mut scalar, &mut beside, Some(&peers))?;
        peers.check()?;
    }
    computed.grads = task.take_grads();
    if let Some(unit) = rows.units.first() {
        note_broken(&computed.grads, unit, broken);
    }
    Ok((vec![computed], term))
}

/// A token of no meaning.
fn idle(machine: &Machine<'_>) -> PassInput {
    let device = machine.model.device();
    let ids = Tensor::zeros([1], (Kind::Int64, device));
    PassInput::new(Inputs::ids(ids), Layout::packed(vec![1], vec![0], device))
}
