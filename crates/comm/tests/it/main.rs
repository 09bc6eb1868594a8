//! Collectives between real processes.

#![allow(clippy::unwrap_used)]

mod faults;
mod ranks;
mod setup;
mod suite;
