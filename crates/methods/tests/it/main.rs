//! Every registered method against its own plan, recorded cases, and adapters that share a batch.

#![allow(clippy::unwrap_used)]

mod adapterhub;
mod bf16;
mod coded;
mod compositions;
mod conformance;
mod dropout;
mod files;
mod generative;
mod groups;
mod lora;
mod malformed;
mod merging;
mod mixda;
mod mosa;
mod p_adapter;
mod parity;
mod pill;
mod routers;
mod snnk;
mod sparse;
mod support;
mod tasks;
mod zoo;
