//! The trait that training code sees. Nothing here knows how bytes travel.

use std::fmt;
use std::sync::Arc;

use pleach_base::Result;
use tch::{Device, Tensor};

use crate::Signature;

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Max => "max",
            Self::Min => "min",
        })
    }
}

/// Ends a group from any thread.
pub trait Abort: Send + Sync {
    /// Ends a pending collective of this rank in well under a second, with `COMM_ABORTED`, and refuses all later ones.
    /// Other ranks see this rank as gone (`COMM_PEER`). Calling it again changes nothing.
    fn abort(&self);
    /// Whether the group was aborted.
    fn is_aborted(&self) -> bool;
}

/// The ranks of one generation, calling the same collectives in the same order.
///
/// Every call blocks until its result is in the tensor. Tensors are on [`Collective::device`], of kind f32, f64, f16,
/// bf16, i64, i32 or u8; a tensor that is not contiguous is copied. Gradients are not tracked.
///
/// # Errors
/// All calls: `COMM_MISMATCH` on every rank when the ranks differ in operation, shape, kind, reduction or root, or when the
/// call is not possible for that shape (nothing was sent, the group stays usable); `COMM_PEER` when a rank is gone;
/// `COMM_TIMEOUT` when one made no progress in time; `COMM_ABORTED` after [`Abort::abort`], and at once on a group
/// that failed before.
pub trait Collective: Send {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;
    /// How many ranks there are.
    fn world(&self) -> usize;
    /// Where tensors must be.
    fn device(&self) -> Device;

    /// Replaces `tensor` on every rank with the reduction over all ranks. The same bits on every rank.
    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<()>;
    /// The tensors of all ranks, in rank order; each has the shape of `tensor`.
    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>>;
    /// Replaces `tensor` with that of rank `root`.
    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()>;
    /// Reduces `[world * k, ...]` over all ranks and returns rows `rank * k ..` of the result: `[k, ...]`.
    fn reduce_scatter(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor>;
    /// Cuts `[world * k, ...]` into `world` pieces, sends piece `j` to rank `j`, and returns the pieces received, in rank
    /// order, in the same shape.
    fn all_to_all(&self, tensor: &Tensor) -> Result<Tensor>;
    /// Returns when every rank has arrived.
    fn barrier(&self) -> Result<()>;

    /// Agrees with all ranks that the next `rounds * calls.len()` calls are `calls`, in order, `rounds` times. A collective
    /// call itself, and always exchanged.
    ///
    /// In fast mode the planned calls then go without an exchange of their own: since every rank holds itself to the
    /// agreed list, they cannot meet a different call. A rank that deviates is refused with `COMM_MISMATCH` before it sends
    /// anything, and its group is aborted, so that the others get `COMM_PEER` instead of waiting. Calls outside a plan are
    /// exchanged one by one, in fast mode as in checked mode.
    ///
    /// # Errors
    /// Those of every call; `COMM_MISMATCH` also while an earlier plan is unfinished.
    fn verify_plan(&self, calls: &[Signature], rounds: usize) -> Result<()>;

    /// A handle that ends this group from another thread.
    fn abort_handle(&self) -> Arc<dyn Abort>;
    /// The ranks whose connection was found closed when a call failed, in order; empty while all is well.
    fn lost(&self) -> Vec<usize>;
}
