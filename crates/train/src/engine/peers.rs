//! The other ranks, as hooks see them.

use std::cell::RefCell;

use pleach_base::{Error, Result};
use pleach_comm::Collective;
use pleach_nn::Peers;
use tch::{Kind, Tensor};

/// The ranks of a gang. Hooks cannot fail: the first error is kept until somebody asks, and calls give zeros from then on.
pub(super) struct Linked<'a> {
    group: &'a dyn Collective,
    failed: RefCell<Option<Error>>,
}

impl<'a> Linked<'a> {
    pub(super) fn new(group: &'a dyn Collective) -> Self {
        Self { group, failed: RefCell::new(None) }
    }

    /// # Errors
    /// Those of [`Collective`], of a call since the last time.
    pub(super) fn check(&self) -> Result<()> {
        self.failed.borrow_mut().take().map_or(Ok(()), Err)
    }

    fn call<T>(&self, call: impl FnOnce() -> Result<T>, failed: impl FnOnce() -> T) -> T {
        if self.failed.borrow().is_some() {
            return failed();
        }
        call().unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            failed()
        })
    }
}

impl Peers for Linked<'_> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world(&self) -> usize {
        self.group.world()
    }

    fn numbers(&self, mine: &[i64]) -> Vec<Vec<i64>> {
        let own = Tensor::from_slice(mine).to_device(self.group.device());
        let all = self.call(|| self.group.all_gather(&own), Vec::new);
        let list = |tensor: &Tensor| Vec::try_from(tensor.to_device(tch::Device::Cpu)).unwrap_or_default();
        match all.len() {
            // Nothing to do for anybody, until the error is seen.
            0 => vec![vec![0; mine.len()]; self.world()],
            _ => all.iter().map(list).collect(),
        }
    }

    fn swap(&self, pieces: &Tensor) -> Tensor {
        let sendable = if pieces.kind() == Kind::Bool { pieces.to_kind(Kind::Uint8) } else { pieces.shallow_clone() };
        self.call(|| self.group.all_to_all(&sendable), || sendable.zeros_like())
    }
}
