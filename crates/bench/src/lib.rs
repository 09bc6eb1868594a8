//! Simulated workers against one real coordinator process: each has its own connection, registers, beats once a second, and
//! trains nothing; some of them commit steps of tasks as fast as the coordinator takes them.
//!
//! Deliberately not here: anything of the coordinator but its program and its gRPC surface.

pub mod control;
mod fleet;
pub mod goals;
mod latency;
mod process;
mod server;
mod worker;
