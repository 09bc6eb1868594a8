//! The scheduler by scenario and by seeded simulation.

mod bench;
mod scenarios;
mod sim;
mod simulation;
