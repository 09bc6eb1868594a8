//! Whole jobs with real processes: what a user types, what dies, what is refused.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod cluster;
mod deaths;
mod drain;
mod feeds;
mod psyche;
mod separate;
mod stores;
mod support;
mod torchft;
