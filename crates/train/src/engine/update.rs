//! From a reduced gradient to new parameters on which all ranks agree.

use pleach_base::{Error, Result, code};
use pleach_methods::Routing;
use pleach_spec::job::NonFinite;

use super::course;
use super::step::Machine;
use super::task::{Pending, Task};
use crate::stop::Wish;
use crate::times::Stage;
use crate::{agree, clip};

/// What a step did; the same on every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Steps done, this one included.
    pub step: u64,
    /// Loss of the global batch, before the update.
    pub loss: f64,
    /// Norm of the reduced gradient before clipping; NaN when the step was skipped.
    pub grad_norm: f64,
    /// Rate of the update.
    pub learning_rate: f64,
    /// Real tokens of the global batch.
    pub tokens: u64,
    /// sha256 of the parameters after the step, hex.
    pub digest: String,
    /// Something was not finite, and nothing was changed.
    pub skipped: bool,
    /// What the ranks do after this step.
    pub wish: Wish,
    /// sha256 of the ids (u64, little-endian) that each lane was fed, by lane. Without any for rows that came in no lanes.
    pub lane_digests: Vec<[u8; 32]>,
    /// Rank 0's word on how far the task's steps are recorded, and durable.
    pub recorded: u64,
    /// See `recorded`.
    pub durable: u64,
    /// Seconds that this rank computed.
    pub compute_seconds: f64,
    /// What the adapter chose, where it chooses.
    pub routing: Option<Routing>,
}

/// What a rank says at the end of a step, beside what came out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// What it wants.
    pub wish: Wish,
    /// The newest step that it knows to be recorded; rank 0's counts.
    pub recorded: u64,
    /// The newest step that it knows to be durable; rank 0's counts.
    pub durable: u64,
}

pub(super) fn optim_step(machine: &Machine<'_>, task: &mut Task, word: Word) -> Result<StepResult> {
    let (group, name) = (machine.group, task.setup.name.clone());
    let Some(mut pending) = task.pending.take() else {
        return Err(code::INTERNAL.error(format!("task {name}: there is no gradient to apply")));
    };
    let learning_rate = task.learning_rate();
    let skipped = pending.broken;
    let grad_norm = if skipped {
        // All ranks come here together: `broken` is what they agreed on.
        let samples = agree::gather_ids(group, &pending.broken_samples)?;
        if task.setup.non_finite == NonFinite::Stop {
            return Err(not_finite(task, &samples));
        }
        task.whole = false;
        task.skipped += 1;
        f64::NAN
    } else {
        task.whole = false;
        apply(task, &mut pending, learning_rate)?
    };
    end_phase(machine, task)?;
    task.step += 1;
    machine.watch.enter(Stage::Commit);
    task.state_digest = task.digest()?;
    (task.whole, task.loss) = (true, pending.loss);
    let adapter = &task.setup.adapter;
    let routing = pending.sums.and_then(|sums| adapter.config().routing(adapter.plan(), &sums));
    let said = agree::Said { step: task.step, digest: task.state_digest, word, fed: pending.fed };
    let agreed = agree::commit(group, name.as_str(), pending.lanes, &said)?;
    Ok(StepResult {
        step: task.step,
        loss: pending.loss,
        grad_norm,
        learning_rate,
        tokens: pending.tokens,
        digest: hex::encode(task.state_digest),
        skipped,
        wish: agreed.wish,
        lane_digests: agreed.lane_digests,
        recorded: agreed.recorded,
        durable: agreed.durable,
        compute_seconds: pending.compute_seconds,
        routing,
    })
}

/// Clips, updates, and returns the norm before clipping.
fn apply(task: &mut Task, pending: &mut Pending, learning_rate: f64) -> Result<f64> {
    let next = task.next();
    if task.setup.own_steps && task.setup.adapter.config().shapes_gradients() {
        task.lend_grads(&pending.grads);
        task.setup.adapter.before_update(next)?;
        pending.grads = task.lent_grads();
        task.setup.adapter.params().zero_grads();
    }
    let norm = clip::clip(&mut pending.grads, task.setup.max_grad_norm);
    task.gate.note(&task.layout, &pending.grads, learning_rate);
    let spans = task.spans(&pending.present).into_owned();
    let params = task.setup.adapter.params();
    let mut flat = params.flatten();
    task.optimizer.step(&mut flat, &pending.grads, learning_rate, &spans);
    params.unflatten(&flat)?;
    if task.setup.own_steps {
        task.lend_grads(&pending.grads);
        task.setup.adapter.after_step(next)?;
        params.zero_grads();
    }
    Ok(norm)
}

/// What follows the last step of a phase: the method's own part, and an optimiser that knows nothing.
fn end_phase(machine: &Machine<'_>, task: &mut Task) -> Result<()> {
    let done = task.next();
    if !done.ends_phase() {
        return Ok(());
    }
    if done.step < done.total {
        task.optimizer.reset();
        // What is rewound is judged by the gradients that it gets from now on.
        task.gate.forget();
    }
    if !task.setup.own_steps {
        return Ok(());
    }
    task.setup.adapter.end_phase(done)?;
    course::end(machine, task, done.phase)
}

fn not_finite(task: &Task, samples: &[u64]) -> Error {
    let step = task.step + 1;
    let whose = match samples {
        [] => "no single sample is to blame: the sum over the batch overflowed".to_owned(),
        samples => format!("in micro-batches with samples {samples:?}"),
    };
    code::NON_FINITE
        .error(format!("task {}: loss or gradient of step {step} is not finite, {whose}", task.setup.name))
        .hint(
            "lower `train.optimizer.lr` or `train.max_grad_norm`, look at those rows, or set `train.non_finite: skip`",
        )
}
