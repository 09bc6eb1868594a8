//! Collectives between real processes.

mod faults;
mod ranks;
mod setup;
mod suite;
