//! Whole jobs with real processes: what a user types, what dies, what is refused.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod deaths;
mod drain;
mod separate;
mod stores;
mod support;
