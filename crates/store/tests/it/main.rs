//! The store on folders and on S3, with real servers, races and writers that stop anywhere.

// Helpers of tests are not `#[test]` functions, which the lint would spare.
#![allow(clippy::unwrap_used)]
// Processes of the tests speak through their output.
#![allow(clippy::print_stdout)]

mod actors;
mod backend;
mod failing;
mod fences;
mod gate;
mod interleavings;
mod kills;
mod ledger;
mod long_logs;
mod probes;
mod races;
mod reading;
mod retaining;
mod sourcing;
mod torn;
mod turns;
mod uploading;
