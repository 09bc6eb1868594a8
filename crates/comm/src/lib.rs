//! Collectives over c10d: gloo, nccl, local.
