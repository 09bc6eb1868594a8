//! The engine and the job loop on tiny real models, alone and between real processes.

#![allow(clippy::unwrap_used)]

mod churn;
mod crew;
mod denominators;
mod fixture;
mod gang;
mod gate;
mod hub;
mod job;
mod mixda;
mod mosa;
mod parity;
mod processes;
mod remote;
mod routers;
mod sequences;
mod snnk;
mod sparse;
mod strategies;
mod tasks;
mod times;
mod together;
mod zoo;
