//! Collectives between the ranks of a gang: [`Collective`] over libtorch's own c10d ([`gloo`], and `nccl` with feature
//! `cuda`), and [`local`] for a gang of one; the store where ranks meet ([`RendezvousServer`]); sums that do not depend on
//! the number of ranks ([`strict_sum`]); the [`conformance`] suite that every implementation passes.
//!
//! A group lives for one generation. It is never repaired: after an abort or a lost peer every call fails at once, and
//! the gang forms a new group under a new prefix. Nothing here decides *when* to give up; that is the caller's policy.
//! No other crate names Gloo, NCCL or c10d. Not here: retries, membership, what is reduced and why.

mod collective;
pub mod conformance;
#[allow(unsafe_code)]
mod ffi;
mod forming;
mod gloo;
mod group;
mod local;
#[cfg(feature = "cuda")]
mod nccl;
mod options;
mod rendezvous;
mod signature;
mod sockets;
mod strict;
mod version;

pub use collective::{Abort, Collective, ReduceOp};
pub use forming::Forming;
pub use gloo::gloo;
pub use local::local;
#[cfg(feature = "cuda")]
pub use nccl::nccl;
pub use options::{Bind, GroupOptions, StoreAddr};
pub use rendezvous::RendezvousServer;
pub use signature::{Call, Signature};
pub use strict::strict_sum;
pub use version::{LIBTORCH_VERSION, check_libtorch, libtorch_version};
