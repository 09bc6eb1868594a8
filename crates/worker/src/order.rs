//! What a coordinator tells this worker to do.

use pleach_base::Result;
use pleach_proto::v1::{Assignment, Prepare};

use crate::gang::{self, Work};
use crate::reporter::Part;

/// An order that keeps the training thread busy.
pub(crate) enum Order {
    Prepare(Box<Prepare>),
    Assignment(Box<Assignment>),
}

impl Order {
    /// What it is about, readable even when its spec is not.
    pub(crate) fn part(&self) -> Part {
        match self {
            Self::Prepare(order) => gang::part(&order.tenant, &order.job, order.term, order.generation),
            Self::Assignment(order) => gang::part(&order.tenant, &order.job, order.term, order.generation),
        }
    }

    pub(crate) fn is_assignment(&self) -> bool {
        self.world().is_some()
    }

    /// Ranks of the gang, if it is about being one of them.
    pub(crate) fn world(&self) -> Option<u32> {
        match self {
            Self::Prepare(_) => None,
            Self::Assignment(order) => Some(order.world),
        }
    }

    /// # Errors
    /// `JOB_SYNTAX` when the spec cannot be read.
    pub(crate) fn work(&self) -> Result<Work> {
        match self {
            Self::Prepare(order) => Work::prepared(order),
            Self::Assignment(order) => Work::assigned(order),
        }
    }
}
