//! The engine and the job loop on tiny real models, alone and between real processes.

#![allow(clippy::unwrap_used)]

mod denominators;
mod fixture;
mod gang;
mod gate;
mod job;
mod parity;
mod processes;
mod remote;
mod zoo;
