//! The scheduler by scenario, by seeded simulation, and exhaustively at small scope.

#![allow(clippy::unwrap_used)]

mod bench;
mod elastic;
mod heard;
mod peers;
mod scenarios;
mod sim;
mod simulation;
mod small;
