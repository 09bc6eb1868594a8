//! Whole jobs with real processes: what a user types, what dies, what is refused.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod cluster;
mod deaths;
mod drain;
mod feeds;
mod outages;
mod psyche;
mod separate;
mod stores;
mod strict;
mod support;
mod torchft;
