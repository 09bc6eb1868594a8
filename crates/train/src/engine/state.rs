//! Everything of a task that training changes, copied out of it and back: what ranks keep in memory to go on from when a
//! gang ends, and give to those who join.

use std::collections::BTreeMap;

use pleach_base::{Result, code};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::task::Task;

/// The trainable state of a task after some step. Tensors lie on the task's device and are shared with nobody.
#[derive(Debug)]
pub(crate) struct TaskState {
    /// Steps done, skipped ones included.
    pub(crate) step: u64,
    pub(crate) skipped: u64,
    /// Updates that the optimiser applied.
    pub(crate) updates: u64,
    /// Which tensors had gradients.
    pub(crate) judged: Vec<bool>,
    /// As [`Task::digest`].
    pub(crate) digest: [u8; 32],
    /// `[n]`.
    pub(crate) params: Tensor,
    /// Each `[n]`, in the order of their names. None of them where all are zero: before the first update.
    pub(crate) moments: Vec<Tensor>,
    /// What the method changes by itself, in the plan's order.
    pub(crate) own: Vec<Tensor>,
}

/// Copies the state out of `task`; into the memory of `spare` when there is one.
pub(super) fn capture(task: &Task, spare: Option<TaskState>) -> TaskState {
    tch::no_grad(|| {
        let moments = match task.optimizer.updates() {
            0 => Vec::new(),
            _ => task.optimizer.moments().into_values().collect(),
        };
        let own: Vec<_> = task.states().map(|(_, tensor)| tensor.detach()).collect();
        let spare = spare.unwrap_or_else(|| TaskState::empty(task));
        TaskState {
            step: task.step,
            skipped: task.skipped,
            updates: task.optimizer.updates(),
            judged: task.gate.judged().to_vec(),
            digest: task.state_digest,
            params: params(task, spare.params),
            moments: copies(&moments, spare.moments),
            own: copies(&own, spare.own),
        }
    })
}

fn params(task: &Task, spare: Tensor) -> Tensor {
    let tree = task.setup.adapter.params();
    if spare.numel() != tree.numel() {
        return tree.flatten();
    }
    for ((_, leaf), (_, piece)) in tree.iter().zip(task.layout.pieces(&spare)) {
        piece.shallow_clone().copy_(&leaf.detach());
    }
    spare
}

fn copies(from: &[Tensor], spare: Vec<Tensor>) -> Vec<Tensor> {
    if spare.len() != from.len() {
        return from.iter().map(Tensor::copy).collect();
    }
    for (into, from) in spare.iter().zip(from) {
        into.shallow_clone().copy_(from);
    }
    spare
}

/// Puts a state back; whatever `task` held, a half done step included, is gone.
///
/// # Errors
/// `INTERNAL` when it is of another adapter.
pub(super) fn restore(task: &mut Task, state: &TaskState) -> Result<()> {
    let own: Vec<_> = task.states().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let fits = own.len() == state.own.len() && state.judged.len() == task.layout.len();
    if !fits || state.params.numel() as i64 != task.layout.numel() {
        return Err(code::INTERNAL.error(format!("task {}: a state of another adapter", task.setup.name)));
    }
    let names = task.optimizer.moments();
    let moments: BTreeMap<_, _> = match state.moments.is_empty() {
        true => names.iter().map(|(name, moment)| ((*name).to_owned(), moment.zeros_like())).collect(),
        false => {
            names.keys().map(|name| (*name).to_owned()).zip(state.moments.iter().map(Tensor::shallow_clone)).collect()
        }
    };
    task.optimizer.restore(state.updates, &moments)?;
    task.gate.restore(state.judged.clone())?;
    let params = task.setup.adapter.params();
    tch::no_grad(|| {
        own.into_iter().zip(&state.own).for_each(|(mut into, from)| into.copy_(from));
        params.unflatten(&state.params)
    })?;
    params.zero_grads();
    (task.step, task.skipped, task.state_digest) = (state.step, state.skipped, state.digest);
    task.pending = None;
    task.whole = true;
    Ok(())
}

/// What goes in front of a state's tensors when it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateHeader {
    step: u64,
    skipped: u64,
    updates: u64,
    judged: Vec<bool>,
    digest: [u8; 32],
    /// There are moments: they are not all zero.
    moments: bool,
}

/// A state as `header` says, for `task`, its tensors still to be filled.
pub(super) fn blank(task: &Task, header: &StateHeader) -> TaskState {
    let params = Tensor::zeros([task.layout.numel()], (Kind::Float, task.device()));
    let moments = task.optimizer.moments();
    TaskState {
        step: header.step,
        skipped: header.skipped,
        updates: header.updates,
        judged: header.judged.clone(),
        digest: header.digest,
        moments: moments.values().filter(|_| header.moments).map(Tensor::zeros_like).collect(),
        own: task.states().map(|(_, tensor)| tensor.detach().zeros_like()).collect(),
        params,
    }
}

impl TaskState {
    /// The same state over the same memory.
    pub(crate) fn alias(&self) -> Self {
        let all = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect();
        Self {
            judged: self.judged.clone(),
            params: self.params.shallow_clone(),
            moments: all(&self.moments),
            own: all(&self.own),
            ..*self
        }
    }

    /// All of it but the tensors.
    pub(crate) fn header(&self) -> StateHeader {
        StateHeader {
            step: self.step,
            skipped: self.skipped,
            updates: self.updates,
            judged: self.judged.clone(),
            digest: self.digest,
            moments: !self.moments.is_empty(),
        }
    }

    fn empty(task: &Task) -> Self {
        let params = Tensor::zeros([0], (Kind::Float, task.device()));
        let (judged, digest) = (Vec::new(), [0; 32]);
        Self { step: 0, skipped: 0, updates: 0, judged, digest, params, moments: Vec::new(), own: Vec::new() }
    }
}
