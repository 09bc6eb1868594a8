//! What a worker holds in memory, and which of it a generation goes on from.

use pleach_base::Fence;
use pleach_sched::Head;

/// A state in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) step: u64,
    pub(crate) digest: u64,
    pub(crate) fence: Fence,
    pub(crate) agreed: bool,
}

/// What the object store knows of a task.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Stored {
    pub(crate) fence: Fence,
    pub(crate) step: u64,
    pub(crate) digest: u64,
}

/// The highest state that any rank holds and that may be gone on from; else what the store has; else nothing. Says too
/// whether it comes from memory.
pub(crate) fn choose<'a>(head: &Head, all: impl Iterator<Item = &'a Held>, stored: Stored) -> (Held, bool) {
    let (newest, made) = (head.step().0, head.recent.back().map(|commit| commit.fence).unwrap_or_default());
    let valid = |held: &&Held| {
        if held.step > newest {
            return held.agreed && held.fence >= made;
        }
        let record = head.recent.iter().find(|commit| commit.step.0 == held.step);
        record.is_some_and(|commit| commit.digest == format!("{:x}", held.digest))
    };
    let best = all.filter(valid).max_by_key(|held| (held.step, held.fence)).cloned();
    let memory = best.is_some();
    let durable = Held { step: stored.step, digest: stored.digest, fence: stored.fence, agreed: true };
    (best.filter(|held| held.step >= stored.step).unwrap_or(durable), memory)
}
