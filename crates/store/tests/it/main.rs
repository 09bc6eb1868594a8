//! The store on folders and on S3, with real servers, races and writers that stop anywhere.

// Helpers of tests are not `#[test]` functions, which the lint would spare.
#![allow(clippy::unwrap_used)]

mod backend;
mod failing;
mod fences;
mod interleavings;
mod kills;
mod probes;
mod reading;
mod retaining;
mod sourcing;
mod turns;
mod uploading;
