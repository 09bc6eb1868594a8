//! The store on folders and on S3, with real servers, races and writers that stop anywhere.

mod backend;
mod failing;
mod fences;
mod interleavings;
mod kills;
mod probes;
mod reading;
mod retaining;
mod uploading;
