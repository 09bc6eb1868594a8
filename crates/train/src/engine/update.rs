//! From a reduced gradient to new parameters on which all ranks agree.

use pleach_base::{Error, Result, code};
use pleach_comm::Collective;
use pleach_methods::StepInfo;
use pleach_spec::job::NonFinite;

use super::task::{Pending, Task};
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
    /// Some rank asks to stop here.
    pub drain: bool,
}

pub(super) fn optim_step(group: &dyn Collective, task: &mut Task, drain: bool) -> Result<StepResult> {
    let name = task.setup.name.clone();
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
        task.skipped += 1;
        f64::NAN
    } else {
        apply(task, &mut pending, learning_rate)?
    };
    task.step += 1;
    let digest = task.digest()?;
    let drain = agree::commit(group, name.as_str(), agree::Commit { step: task.step, digest, drain })?;
    Ok(StepResult {
        step: task.step,
        loss: pending.loss,
        grad_norm,
        learning_rate,
        tokens: pending.tokens,
        digest: hex::encode(digest),
        skipped,
        drain,
    })
}

/// Clips, updates, and returns the norm before clipping.
fn apply(task: &mut Task, pending: &mut Pending, learning_rate: f64) -> Result<f64> {
    let norm = clip::clip(&mut pending.grads, task.setup.max_grad_norm);
    task.gate.note(&task.layout, &pending.grads, learning_rate);
    let params = task.setup.adapter.params();
    let mut flat = params.flatten();
    task.optimizer.step(&mut flat, &pending.grads, learning_rate, &task.spans);
    params.unflatten(&flat)?;
    if task.setup.own_steps {
        task.lend_grads(&pending.grads);
        task.setup.adapter.after_step(StepInfo { step: task.step + 1, total: task.setup.total_steps })?;
        params.zero_grads();
    }
    Ok(norm)
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
