//! The coordinator: gRPC and HTTP, state, driving the scheduler.

mod config;

pub use config::{Config, StateStore};
