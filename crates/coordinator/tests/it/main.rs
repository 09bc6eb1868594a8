//! The coordinator over real sockets, with workers that speak the real protocol and train nothing.

#![allow(clippy::unwrap_used)]

mod cluster;
mod jobs;
mod leader;
mod restart;
mod surface;
mod worker;
mod workers;
