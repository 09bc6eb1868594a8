//! The scheduler by scenario and by seeded simulation.

#![allow(clippy::unwrap_used)]

mod bench;
mod elastic;
mod peers;
mod scenarios;
mod sim;
mod simulation;
