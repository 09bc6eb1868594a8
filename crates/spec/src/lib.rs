//! The job file and the node configuration: typed, versioned, strict.
//!
//! [`load`] turns text into a [`Job`]: syntax, then `--set` overrides, then what tasks
//! inherit, then the schema (unknown keys, types), then what
//! a schema cannot say ([`Job::validate`]). Every error names the key's path and, through [`Places`], line and column.
//! Options of methods are not known here; the `methods` crate types them and may use [`check_section`] for the keys.

mod check;
mod hints;
mod inherit;
pub mod job;
mod load;
pub mod node;
mod overrides;
mod places;
mod resolve;
mod schema;
mod tree;
mod validate;

pub use check::check_section;
pub use job::Job;
pub use load::{Loaded, load, parse, read};
pub use places::Places;
pub use schema::{MethodSchemas, schema};
