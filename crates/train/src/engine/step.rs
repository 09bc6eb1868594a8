//! Forward and backward of one step on this rank, and the reduction over ranks.
//!
//! The rows of a rank are computed in *units*. In fast mode there is one unit, all of the rank's rows, and units are
//! added by a plain all-reduce. In strict mode each lane is a unit of its own: what a lane gives depends on nothing but
//! its rows, and lanes are added in lane order, so the bits do not know how many ranks there are.

use std::cell::Cell;
use std::time::Duration;

use pleach_base::{Result, SharedClock, code};
use pleach_comm::{Collective, ReduceOp, strict_sum};
use pleach_data::Batch;
use pleach_methods::continual::Sequence;
use pleach_methods::{Passes, symmetric_kl};
use pleach_nn::{Backbone, Output};
use pleach_spec::job::Determinism;
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use super::batch::{Ground, MicroBatch, StepBatch};
use super::objective::{Objective, wrong_head};
use super::packed::Packed;
use super::pass::{Mode, PassInput, Rider, forward};
use super::task::{Pending, Task};
use super::{blockwise, coupled, in_step, together};
use crate::loss::{self, Counts, Term, contrastive};
use crate::observer::Observer;
use crate::phase::Phase;
use crate::times::{Stage, Stopwatch};
use crate::{agree, clip, lanes};

/// What the step runs on.
pub(super) struct Machine<'a> {
    pub(super) model: &'a dyn Backbone,
    pub(super) group: &'a dyn Collective,
    pub(super) observer: &'a dyn Observer,
    pub(super) clock: &'a SharedClock,
    /// Told what is being done.
    pub(super) watch: &'a Stopwatch,
    /// How long it waited for other ranks.
    pub(super) waited: Cell<Duration>,
}

impl Machine<'_> {
    /// Time of this rank's own work: waiting is not counted.
    pub(super) fn worked(&self) -> Duration {
        self.clock.elapsed().saturating_sub(self.waited.get())
    }

    /// An exchange in the midst of the work.
    pub(super) fn exchange<T>(&self, with_others: impl FnOnce() -> T) -> T {
        let begun = self.clock.elapsed();
        let result = self.watch.during(Stage::Wait, with_others);
        self.waited.set(self.waited.get() + self.clock.elapsed().saturating_sub(begun));
        result
    }
}

/// Rows whose gradients are added up before they are exchanged.
pub(super) struct Unit {
    /// The lane that it is, in strict mode; else the rank.
    pub(super) number: usize,
    pub(super) micro_batches: Vec<MicroBatch>,
}

/// What a unit gave.
pub(super) struct Computed {
    pub(super) number: usize,
    pub(super) grads: Tensor,
    /// Sum of the loss over what it counts.
    pub(super) sum: f64,
    /// What the adapter's hooks added to sums over the batch.
    pub(super) sums: Option<Tensor>,
}

/// Computes and reduces the gradient of one step.
pub(super) fn forward_backward(machine: &Machine<'_>, task: &Task, batch: &StepBatch) -> Result<Pending> {
    let units = units(machine, task, batch, together::keeps_bits(machine.model, task))?;
    let pending = compute(machine, task, &units, &batch.lane_rows)?;
    Ok(pending.of(batch))
}

/// sha256 of sample ids, each as a little-endian u64, in order.
pub(super) fn lane_digest(ids: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize().into()
}

/// The same for rows that are laid out already, as many on every rank, each rank's the lane of its number.
pub(super) fn forward_backward_rows(machine: &Machine<'_>, task: &Task, rows: MicroBatch) -> Result<Pending> {
    let lane_rows = vec![rows.samples.len(); machine.group.world()];
    let unit = Unit { number: machine.group.rank(), micro_batches: vec![rows] };
    compute(machine, task, &[unit], &lane_rows)
}

fn compute(machine: &Machine<'_>, task: &Task, units: &[Unit], lane_rows: &[usize]) -> Result<Pending> {
    machine.watch.enter(Stage::Wait);
    let totals = agree::sums(machine.group, &counted(units))?;
    let present = present(machine, task, units)?;
    let denominators = task.setup.objective.counts(totals[0]);
    let mut broken_samples = Vec::new();
    // What a step that was cut short left.
    drop(task.take_sums());
    let begun = machine.worked();
    machine.watch.enter(Stage::Forward);
    let (mut batch_term, lanes) = (0.0, lane_rows.len());
    let computed = match task.setup.objective {
        Objective::Contrastive { temperature } => {
            across_rows(machine, task, lane_rows, units, temperature, &mut broken_samples)?
        }
        objective if task.couples() => {
            let rows = coupled::Rows { objective, units, lanes, denominators: &denominators };
            let row_by_row = if task.exchanges() { in_step::row_by_row } else { coupled::row_by_row };
            let (computed, term) = row_by_row(machine, task, &rows, &mut broken_samples)?;
            batch_term = term;
            computed
        }
        objective => row_by_row(machine, task, objective, units, &denominators, &mut broken_samples)?,
    };
    let compute_seconds = machine.worked().saturating_sub(begun).as_secs_f64();
    machine.observer.phase(Phase::AfterBackward);
    let work =
        Work { computed, broken_samples, batch_term, compute_seconds, lanes, totals: [totals[0], totals[1]], present };
    conclude(machine, task, work)
}

/// What the loss counts in the rows of this rank, and their tokens.
pub(super) fn counted(units: &[Unit]) -> [f64; 2] {
    let all = || units.iter().flat_map(|unit| &unit.micro_batches);
    [all().map(|m| m.count).sum::<f64>(), all().map(|m| m.tokens as f64).sum::<f64>()]
}

/// What this rank computed of a step.
pub(super) struct Work {
    pub(super) computed: Vec<Computed>,
    pub(super) broken_samples: Vec<u64>,
    /// The value of the term of the whole batch.
    pub(super) batch_term: f64,
    pub(super) compute_seconds: f64,
    /// Lanes of the step.
    pub(super) lanes: usize,
    /// As [`counted`], of all ranks.
    pub(super) totals: [f64; 2],
    /// As [`present`].
    pub(super) present: Vec<bool>,
}

/// Adds what all ranks computed.
pub(super) fn conclude(machine: &Machine<'_>, task: &Task, work: Work) -> Result<Pending> {
    machine.watch.enter(Stage::Reduce);
    machine.observer.phase(Phase::DuringReduce);
    let (lanes, computed) = (work.lanes, &work.computed);
    let denominators = task.setup.objective.counts(work.totals[0]);
    let (mut grads, sum) = reduce(machine.group, task, lanes, computed)?;
    let own_term = regularise(task, &mut grads) + work.batch_term;
    let sums = coupled::reduced(machine.group, task, lanes, computed)?;
    let sums = sums.and_then(|sums| Vec::try_from(sums.flatten(0, -1)).ok());
    let broken_samples = work.broken_samples;
    let broken = !broken_samples.is_empty() || !clip::is_finite(&grads);
    let broken = agree::maxima(machine.group, &[f64::from(u8::from(broken))])?[0] > 0.0;
    let loss = loss::value(&[(task.setup.objective.term(), sum, 1.0)], &denominators) + own_term;
    let (tokens, lanes, fed) = (work.totals[1] as u64, 0, Vec::new());
    let Work { present, compute_seconds, .. } = work;
    Ok(Pending { grads, loss, tokens, broken, broken_samples, lanes, fed, present, compute_seconds, sums })
}

impl Pending {
    /// The same with what it was fed; rows of a source beside are not counted.
    pub(super) fn of(self, batch: &StepBatch) -> Self {
        let fed = batch.lanes.iter().map(|(lane, rows)| (*lane, lane_digest(&rows.own_ids()))).collect();
        Self { lanes: batch.lane_rows.len(), fed, ..self }
    }
}

/// Which of the tasks that rows may name have rows in the step, on any rank.
fn present(machine: &Machine<'_>, task: &Task, units: &[Unit]) -> Result<Vec<bool>> {
    let Some(tasks) = task.setup.adapter.config().row_tasks() else { return Ok(Vec::new()) };
    let mut rows = vec![0.0; tasks.count as usize];
    for micro in units.iter().flat_map(|unit| &unit.micro_batches) {
        let named = micro.passes.first().map_or(&[][..], |pass| pass.layout.tasks());
        if named.len() != micro.samples.len() {
            return Err(code::METHOD_CONFIG
                .error(format!("task {}: rows do not name which of {} tasks they are of", task.setup.name, tasks.count))
                .hint("the adapter tells rows apart by their tasks: give each row one"));
        }
        for named in named {
            let unknown = || code::INTERNAL.error(format!("a row names task {named} of {}", tasks.count));
            *rows.get_mut(*named as usize).ok_or_else(unknown)? += 1.0;
        }
    }
    Ok(agree::sums(machine.group, &rows)?.iter().map(|rows| *rows > 0.0).collect())
}

/// The rows of a step on this rank; end to end where they are to be `packed` whatever that costs or saves.
pub(super) fn units(machine: &Machine<'_>, task: &Task, batch: &StepBatch, packed: bool) -> Result<Vec<Unit>> {
    let ground = Ground { packed, ..task.ground(machine.model) };
    let unit = |number, rows: &Batch| {
        let most = task.setup.micro_batch.unwrap_or(rows.len());
        let micro_batches = MicroBatch::cut(&ground, rows, most)?;
        Ok(Unit { number, micro_batches })
    };
    match task.setup.determinism {
        Determinism::Fast if !couples_rows(task) => {
            let rows = Batch::concat(batch.lanes.iter().map(|(_, rows)| rows.clone()));
            rows.iter().map(|rows| unit(machine.group.rank(), rows)).collect()
        }
        _ => batch.lanes.iter().map(|(lane, rows)| unit(*lane as usize, rows)).collect(),
    }
}

/// Whether rows see others of their lane, so that lanes must not be put together.
fn couples_rows(task: &Task) -> bool {
    task.setup.adapter.config().sequence().is_some_and(Sequence::couples_rows)
}

/// Adds the gradient of the adapter's own term to the reduced one and gives its value. It depends on the parameters
/// alone, which all ranks have: each works it out for itself, once a step, after the sum over rows.
fn regularise(task: &Task, grads: &mut Tensor) -> f64 {
    let Some(term) = task.setup.adapter.regulariser() else { return 0.0 };
    if term.requires_grad() {
        term.backward();
        let own = task.take_grads();
        let _ = tch::no_grad(|| grads.g_add_(&own));
    }
    term.double_value(&[])
}

/// Losses whose rows do not see each other.
fn row_by_row(
    machine: &Machine<'_>,
    task: &Task,
    objective: Objective,
    units: &[Unit],
    denominators: &Counts,
    broken: &mut Vec<u64>,
) -> Result<Vec<Computed>> {
    let mode = Mode { train: true, step: task.step, pass: 0 };
    let passes = task.setup.adapter.config().passes();
    let mut computed = Vec::with_capacity(units.len());
    for unit in units {
        let mut sum = 0.0;
        for micro in &unit.micro_batches {
            machine.watch.enter(Stage::Forward);
            machine.observer.progress();
            agree::alive(machine.group)?;
            let Some(targets) = &micro.targets else { continue };
            let mut note = |terms: &[Term]| {
                let value: f64 = terms.iter().map(|term| term.coefficient * term.sum.double_value(&[])).sum();
                if !value.is_finite() {
                    broken.extend(&micro.samples);
                }
                sum += value;
            };
            if passes.weights.len() > 1 {
                let terms = several(machine, task, objective, &micro.passes[0], targets, &passes)?;
                note(&terms);
                machine.watch.enter(Stage::Backward);
                if let Some(total) = loss::total(&terms, denominators).filter(Tensor::requires_grad) {
                    total.backward();
                }
                continue;
            }
            backward(machine, task, &micro.passes[0], mode, &mut |output| {
                let terms = terms(task, objective, output, targets)?;
                note(&terms);
                Ok(loss::total(&terms, denominators))
            })?;
        }
        let grads = task.take_grads();
        note_broken(&grads, unit, broken);
        computed.push(Computed { number: unit.number, grads, sum, sums: task.take_sums() });
    }
    Ok(computed)
}

/// The terms of a micro-batch in its only pass, with that pass's weight: the objective's, or those of a method that learns
/// a sequence of tasks.
pub(super) fn terms(task: &Task, objective: Objective, output: &Output, targets: &Tensor) -> Result<Vec<Term>> {
    let adapter = &task.setup.adapter;
    let terms = match (adapter.config().sequence(), output) {
        (Some(sequence), Output::Classes(rows)) => {
            let sum = sequence.loss(&adapter.parts(), rows, targets)?;
            vec![Term { name: objective.term(), sum, coefficient: 1.0 }]
        }
        _ => objective.terms(output, targets)?,
    };
    let weight = adapter.config().passes().weights.first().copied().unwrap_or(1.0);
    Ok(terms.into_iter().map(|term| Term { coefficient: term.coefficient * weight, ..term }).collect())
}

/// The terms of several passes over the same rows, and of what binds the first two. The graphs of all passes live at once,
/// whatever the task wants of its memory.
fn several(
    machine: &Machine<'_>,
    task: &Task,
    objective: Objective,
    input: &PassInput,
    targets: &Tensor,
    passes: &Passes,
) -> Result<Vec<Term>> {
    let (mut terms, mut predictions) = (Vec::new(), Vec::new());
    for (pass, weight) in passes.weights.iter().enumerate() {
        let mode = Mode { train: true, step: task.step, pass: pass as u32 };
        let output = forward(machine.model, &task.setup.adapter, input, mode);
        terms.extend(
            objective
                .terms(&output, targets)?
                .into_iter()
                .map(|term| Term { coefficient: term.coefficient * weight, ..term }),
        );
        if passes.symmetric_kl != 0.0 && pass < 2 {
            predictions.push(objective.predictions(&output, targets)?.to_kind(Kind::Float));
        }
    }
    if let [first, second] = predictions.as_slice() {
        let sum = symmetric_kl(first, second).sum(Kind::Float);
        terms.push(Term { name: objective.term(), sum, coefficient: passes.symmetric_kl });
    }
    Ok(terms)
}

/// Forward, and backward from what `scalar` makes of the output; block by block if the task wants that.
fn backward(
    machine: &Machine<'_>,
    task: &Task,
    input: &PassInput,
    mode: Mode,
    scalar: &mut dyn FnMut(&Output) -> Result<Option<Tensor>>,
) -> Result<()> {
    let adapter = &task.setup.adapter;
    machine.watch.enter(Stage::Forward);
    let mut scalar = |output: &Output| {
        let total = scalar(output);
        machine.watch.enter(Stage::Backward);
        total
    };
    if task.setup.checkpointing {
        let riders = [Rider::new(task, input.layout.sequences())];
        return blockwise::backward(machine.model, &riders, input, mode, &mut scalar, &mut || None, None);
    }
    let output = forward(machine.model, adapter, input, mode);
    let total = scalar(&output)?;
    // The graph keeps of the output what it needs.
    drop(output);
    if let Some(total) = total.filter(Tensor::requires_grad) {
        total.backward();
    }
    Ok(())
}

/// A contrastive loss over the whole global batch: embeddings first, then their gradients, then those of parameters.
fn across_rows(
    machine: &Machine<'_>,
    task: &Task,
    lane_rows: &[usize],
    units: &[Unit],
    temperature: f64,
    broken: &mut Vec<u64>,
) -> Result<Vec<Computed>> {
    // When rows are cut for memory's sake their graphs must not all live at once: embed without, then again with one.
    let keep = !task.setup.checkpointing && task.setup.micro_batch.is_none()
        || units.iter().map(|unit| unit.micro_batches.len()).sum::<usize>() <= 1;
    let mut embedded: Vec<Vec<[Tensor; 2]>> = Vec::with_capacity(units.len());
    for unit in units {
        let embed_all = || unit.micro_batches.iter().map(|micro| embed_pair(machine, task, micro)).collect();
        let pairs: Result<_> = if keep { embed_all() } else { tch::no_grad(embed_all) };
        embedded.push(pairs?);
    }
    let (queries, passages) = machine.exchange(|| gather(machine, lane_rows, &embedded))?;
    let (d_queries, d_passages, sum) = contrastive::cotangents(&queries, &passages, temperature);
    machine.watch.enter(Stage::Backward);
    let mut at = own_start(machine.group, lane_rows);
    let mut computed = Vec::with_capacity(units.len());
    for (index, (unit, pairs)) in units.iter().zip(embedded).enumerate() {
        for (micro, kept) in unit.micro_batches.iter().zip(pairs) {
            let rows = micro.samples.len() as i64;
            let cotangents = [&d_queries, &d_passages].map(|all| all.narrow(0, at, rows));
            let mut finite = true;
            let mut weigh = |embedding: &Tensor, side: usize| {
                finite &= clip::is_finite(embedding);
                (embedding.to_kind(Kind::Float) * &cotangents[side]).sum(Kind::Float)
            };
            if keep {
                for (side, embedding) in kept.iter().enumerate() {
                    let weighted = weigh(embedding, side);
                    if weighted.requires_grad() {
                        weighted.backward();
                    }
                }
            } else {
                for (side, input) in micro.passes.iter().enumerate() {
                    let mode = Mode { train: true, step: task.step, pass: side as u32 };
                    backward(machine, task, input, mode, &mut |output| Ok(Some(weigh(output.tensor(), side))))?;
                }
            }
            if !finite {
                broken.extend(&micro.samples);
            }
            at += rows;
        }
        let grads = task.take_grads();
        note_broken(&grads, unit, broken);
        // Every rank knows the whole sum; it must be counted once.
        let first = machine.group.rank() == 0 && index == 0;
        let (sum, sums) = (if first { sum } else { 0.0 }, task.take_sums());
        computed.push(Computed { number: unit.number, grads, sum, sums });
    }
    Ok(computed)
}

/// Query and passage embeddings of a micro-batch, each `[rows, d]`.
fn embed_pair(machine: &Machine<'_>, task: &Task, micro: &MicroBatch) -> Result<[Tensor; 2]> {
    machine.observer.progress();
    agree::alive(machine.group)?;
    let embed = |pass: u32| match micro.passes.get(pass as usize) {
        Some(input) => {
            let mode = Mode { train: true, step: task.step, pass };
            match forward(machine.model, &task.setup.adapter, input, mode) {
                Output::Vectors(vectors) => Ok(vectors),
                _ => Err(wrong_head(task.setup.objective)),
            }
        }
        None => Err(wrong_head(task.setup.objective)),
    };
    Ok([embed(0)?, embed(1)?])
}

/// Queries and passages of all ranks in lane order, each `[n, d]`, without graphs.
fn gather(machine: &Machine<'_>, lane_rows: &[usize], embedded: &[Vec<[Tensor; 2]>]) -> Result<(Tensor, Tensor)> {
    let width = machine.model.config().info().hidden_size as i64;
    let side = |side: usize| {
        let parts: Vec<_> = embedded.iter().flatten().map(|pair| pair[side].detach().to_kind(Kind::Float)).collect();
        match parts.is_empty() {
            true => Tensor::zeros([0, width], (Kind::Float, machine.model.device())),
            false => Tensor::cat(&parts, 0),
        }
    };
    let own = Tensor::cat(&[side(0), side(1)], 1); // [k, 2 d]
    let counts = rank_rows(machine.group, lane_rows);
    let all = agree::gather_rows(machine.group, &own, &counts)?;
    Ok((all.narrow(1, 0, width).contiguous(), all.narrow(1, width, width).contiguous()))
}

/// Rows of every rank.
fn rank_rows(group: &dyn Collective, lane_rows: &[usize]) -> Vec<usize> {
    let lanes_total = lane_rows.len() as u32;
    let rows = |rank| lanes::of_rank(lanes_total, rank, group.world()).map(|lane| lane_rows[lane as usize]).sum();
    (0..group.world()).map(rows).collect()
}

/// Number of this rank's first row in the gathered order.
fn own_start(group: &dyn Collective, lane_rows: &[usize]) -> i64 {
    rank_rows(group, lane_rows).iter().take(group.rank()).sum::<usize>() as i64
}

/// Names the samples of a unit whose gradient is not finite though its losses were.
pub(super) fn note_broken(grads: &Tensor, unit: &Unit, broken: &mut Vec<u64>) {
    if broken.is_empty() && !clip::is_finite(grads) {
        broken.extend(unit.micro_batches.iter().flat_map(|micro| &micro.samples));
    }
}

/// The sum of the gradients `[n]` and of the losses over all ranks. Tensors that take no part
/// in this step have none.
fn reduce(group: &dyn Collective, task: &Task, lanes: usize, computed: &[Computed]) -> Result<(Tensor, f64)> {
    let spans = task.exchanged();
    let packed = Packed::new(&spans);
    let n = packed.numel();
    match task.setup.determinism {
        Determinism::Fast => {
            let mut grads = match computed {
                [one] => packed.pack(&one.grads),
                all => {
                    let zero = Tensor::zeros([n], (Kind::Float, group.device()));
                    all.iter().fold(zero, |sum, unit| sum + packed.pack(&unit.grads))
                }
            };
            group.all_reduce(&mut grads, ReduceOp::Sum)?;
            let sum = agree::sums(group, &[computed.iter().map(|unit| unit.sum).sum()])?[0];
            Ok((packed.unpack(grads), sum))
        }
        Determinism::Strict => {
            let grads: Vec<_> = computed.iter().map(|unit| (unit.number, packed.pack(&unit.grads))).collect();
            let grads = strict_sum(group, &grads, lanes, &[n], Kind::Float)?;
            let sums: Vec<_> = computed
                .iter()
                .map(|unit| (unit.number, Tensor::from_slice(&[unit.sum]).to_device(group.device())))
                .collect();
            let sum = strict_sum(group, &sums, lanes, &[1], Kind::Double)?;
            Ok((packed.unpack(grads), sum.double_value(&[0])))
        }
    }
}
