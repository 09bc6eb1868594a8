//! The worker against a coordinator that says what the test wants.

#![allow(clippy::unwrap_used)]

mod coordinator;
mod parity;
mod worker;
