//! The worker against a coordinator that says what the test wants.

#![allow(clippy::unwrap_used)]

mod commands;
mod coordinator;
mod elastic;
mod outage;
mod parity;
mod process;
mod worker;
