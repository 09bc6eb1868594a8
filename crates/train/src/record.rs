//! Steps as they are recorded outside the gang: what is known when a generation begins, what rank 0 tells of each step,
//! and how far the record has come.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pleach_base::{Fence, TaskName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// One recorded step of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done, this one included.
    pub step: u64,
    /// The generation that made it.
    pub fence: Fence,
    /// sha256 of the task's parameters after it, hex.
    pub digest: String,
}

/// The newest records of every task, oldest first, steps without a gap.
pub type Heads = BTreeMap<TaskName, Vec<Record>>;

/// A step on which all ranks agreed: told once by rank 0, kept by every rank until it is durable. Its fence is that of the
/// generation that made it, or recorded it for one that could not.
pub use pleach_store::LedgerRow as CommitRow;

/// sha256 over the digests of a step's lanes, in lane order.
pub(crate) fn sample_digest(lanes: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    lanes.iter().for_each(|lane| hash.update(lane));
    hash.finalize().into()
}

/// How far the steps of this generation are recorded: whoever hears that notes it, the training thread looks. Cheap to
/// clone; each generation has its own.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Nobody records: a step counts as soon as the ranks agree.
    at_once: bool,
    steps: Mutex<BTreeMap<TaskName, u64>>,
    changed: Condvar,
}

impl Recorded {
    /// Where nobody records: every step counts as recorded once the ranks agree on it.
    #[must_use]
    pub fn at_once() -> Self {
        Self(Arc::new(Inner { at_once: true, ..Inner::default() }))
    }

    /// Notes that a task is recorded up to `step`. Never goes back.
    pub fn note(&self, task: &TaskName, step: u64) {
        let mut steps = self.steps();
        let known = steps.entry(task.clone()).or_default();
        *known = step.max(*known);
        drop(steps);
        self.0.changed.notify_all();
    }

    /// The newest step of a task that this generation knows to be recorded.
    #[must_use]
    pub fn step(&self, task: &TaskName) -> u64 {
        self.steps().get(task).copied().unwrap_or_default()
    }

    /// The ranks agreed on a step.
    pub(crate) fn agreed(&self, task: &TaskName, step: u64) {
        if self.0.at_once {
            self.note(task, step);
        }
    }

    /// Waits until `step` is recorded; false when `limit` passed first.
    pub(crate) fn wait(&self, task: &TaskName, step: u64, limit: Duration) -> bool {
        let missing = |steps: &mut BTreeMap<TaskName, u64>| steps.get(task).copied().unwrap_or_default() < step;
        let waited = self.0.changed.wait_timeout_while(self.steps(), limit, missing);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn steps(&self) -> MutexGuard<'_, BTreeMap<TaskName, u64>> {
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_never_goes_back_and_wakes_who_waits() {
        let (recorded, task) = (Recorded::default(), TaskName::from("a"));
        recorded.agreed(&task, 4);
        assert_eq!(recorded.step(&task), 0, "somebody else records");
        let other = recorded.clone();
        let waiting = std::thread::spawn(move || other.wait(&"a".into(), 3, Duration::from_secs(60)));
        recorded.note(&task, 5);
        recorded.note(&task, 2);
        assert_eq!(recorded.step(&task), 5);
        assert!(waiting.join().unwrap());
        assert!(!recorded.wait(&task, 6, Duration::from_millis(5)));
        let alone = Recorded::at_once();
        alone.agreed(&task, 4);
        assert_eq!(alone.step(&task), 4);
    }
}
