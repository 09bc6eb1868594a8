//! The job file and the node configuration: typed, versioned, strict.

pub mod job;

pub use job::Job;
