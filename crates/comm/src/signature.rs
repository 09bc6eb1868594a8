//! What a call looks like to the other ranks, as text and as a digest of fixed size. Pure.

use std::fmt;

use pleach_base::{Result, code};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::ReduceOp;

/// One collective operation and its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`crate::Collective::all_reduce`].
    AllReduce(ReduceOp),
    /// [`crate::Collective::all_gather`].
    AllGather,
    /// [`crate::Collective::broadcast`] from this root.
    Broadcast(usize),
    /// [`crate::Collective::reduce_scatter`].
    ReduceScatter(ReduceOp),
    /// [`crate::Collective::all_to_all`].
    AllToAll,
    /// [`crate::Collective::barrier`].
    Barrier,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce(op) => write!(f, "all_reduce {op}"),
            Self::AllGather => f.write_str("all_gather"),
            Self::Broadcast(root) => write!(f, "broadcast from {root}"),
            Self::ReduceScatter(op) => write!(f, "reduce_scatter {op}"),
            Self::AllToAll => f.write_str("all_to_all"),
            Self::Barrier => f.write_str("barrier"),
        }
    }
}

/// A call with the kind and shape of its tensor: what all ranks must have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    call: Call,
    kind: Kind,
    shape: Vec<i64>,
    /// The device of a tensor that is not where the group works.
    stray: Option<Device>,
}

impl Signature {
    /// The signature of `call` on a tensor of this kind and shape.
    #[must_use]
    pub fn new(call: Call, kind: Kind, shape: &[i64]) -> Self {
        Self { call, kind, shape: shape.to_vec(), stray: None }
    }

    /// The signature of `call` on `tensor`.
    #[must_use]
    pub fn of(call: Call, tensor: &Tensor) -> Self {
        Self::new(call, tensor.kind(), &tensor.size())
    }

    /// The signature of a barrier.
    #[must_use]
    pub fn barrier() -> Self {
        Self::new(Call::Barrier, Kind::Uint8, &[])
    }

    /// Notes a tensor that is on another device than its group.
    pub(crate) fn stray(mut self, device: Device, group: Device) -> Self {
        self.stray = (device != group).then_some(device);
        self
    }

    /// Whether a group of `world` ranks can do this. A function of the signature alone, so that all ranks refuse alike.
    pub(crate) fn possible(&self, world: usize) -> Result<()> {
        let refuse = |why: String| Err(code::COMM_MISMATCH.error(format!("{self}: {why}")));
        if kind_name(self.kind).is_none() {
            return refuse("tensors of this kind cannot travel".to_owned());
        }
        if self.stray.is_some() {
            return refuse("the group works on another device".to_owned());
        }
        match self.call {
            Call::Broadcast(root) if root >= world => refuse(format!("there are only {world} ranks")),
            Call::ReduceScatter(_) | Call::AllToAll => {
                let rows = self.shape.first().copied().unwrap_or(0);
                let whole = !self.shape.is_empty() && i64::try_from(world).is_ok_and(|world| rows % world == 0);
                if whole { Ok(()) } else { refuse(format!("the first dimension is not a multiple of {world} ranks")) }
            }
            _ => Ok(()),
        }
    }

    /// 32 bytes that differ when the signatures differ.
    pub(crate) fn digest(&self) -> [u8; 32] {
        digest(&self.to_string())
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.call == Call::Barrier {
            return write!(f, "{}", self.call);
        }
        match kind_name(self.kind) {
            Some(name) => write!(f, "{} of {name} {:?}", self.call, self.shape),
            None => write!(f, "{} of {:?} {:?}", self.call, self.kind, self.shape),
        }?;
        self.stray.map_or(Ok(()), |device| write!(f, " on {device:?}"))
    }
}

/// The digest of any text that ranks compare.
pub(crate) fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The digest and a short description of a plan.
pub(crate) fn plan_digest(calls: &[Signature], rounds: usize) -> ([u8; 32], String) {
    let list: Vec<String> = calls.iter().map(Signature::to_string).collect();
    let hash = digest(&format!("plan {rounds}\n{}", list.join("\n")));
    let short = format!("plan of {rounds} x {} calls: {}", calls.len(), list.join("; "));
    (hash, short)
}

/// The name of a kind that may travel.
fn kind_name(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Float => "f32",
        Kind::Double => "f64",
        Kind::Half => "f16",
        Kind::BFloat16 => "bf16",
        Kind::Int64 => "i64",
        Kind::Int => "i32",
        Kind::Uint8 => "u8",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_differ_in_every_field() {
        let base = Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[4, 5]);
        assert_eq!(base.to_string(), "all_reduce sum of f32 [4, 5]");
        let others = [
            Signature::new(Call::AllReduce(ReduceOp::Max), Kind::Float, &[4, 5]),
            Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Double, &[4, 5]),
            Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[5, 4]),
            Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[45]),
            Signature::new(Call::Broadcast(0), Kind::Float, &[4, 5]),
            Signature::new(Call::Broadcast(1), Kind::Float, &[4, 5]),
            Signature::barrier(),
        ];
        let mut digests: Vec<_> = others.iter().chain([&base]).map(Signature::digest).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), others.len() + 1);
    }

    #[test]
    fn a_plan_is_its_calls_in_order_and_its_rounds() {
        let a = Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[1]);
        let b = Signature::barrier();
        let hash = |calls: &[&Signature], rounds| {
            plan_digest(&calls.iter().map(|s| (*s).clone()).collect::<Vec<_>>(), rounds).0
        };
        assert_ne!(hash(&[&a, &b], 1), hash(&[&b, &a], 1));
        assert_ne!(hash(&[&a, &b], 1), hash(&[&a, &b], 2));
        assert_eq!(hash(&[&a, &b], 2), hash(&[&a, &b], 2));
    }

    #[test]
    fn impossible_calls_are_refused_by_the_signature_alone() {
        let refused = [
            Signature::new(Call::Broadcast(2), Kind::Float, &[1]),
            Signature::new(Call::ReduceScatter(ReduceOp::Sum), Kind::Float, &[3]),
            Signature::new(Call::AllToAll, Kind::Float, &[]),
            Signature::new(Call::AllGather, Kind::ComplexFloat, &[2]),
        ];
        for signature in refused {
            assert_eq!(signature.possible(2).unwrap_err().code(), code::COMM_MISMATCH, "{signature}");
        }
        assert!(Signature::new(Call::AllToAll, Kind::Int64, &[4, 3]).possible(2).is_ok());
    }

    #[test]
    fn a_tensor_on_another_device_is_refused_and_differs_from_one_that_is_not() {
        let here = Signature::new(Call::AllGather, Kind::Float, &[2]);
        let astray = here.clone().stray(Device::Cuda(0), Device::Cpu);
        assert_eq!(astray.possible(2).unwrap_err().code(), code::COMM_MISMATCH);
        assert_ne!(here.digest(), astray.digest());
        assert_eq!(here.clone().stray(Device::Cpu, Device::Cpu), here);
    }
}
