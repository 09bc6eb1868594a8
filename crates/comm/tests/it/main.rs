//! Collectives between real processes.

#![allow(clippy::unwrap_used)]

mod faults;
mod forming;
mod ranks;
mod setup;
mod suite;
