//! What every crate of Pleach shares: [`Error`] with its stable [`Code`]s, typed ids, and the injected
//! sources of time ([`Clock`]), randomness ([`rng`]) and identifiers ([`IdSource`]).
//!
//! Nothing here does I/O, and nothing here knows a tensor (only the [`header`] of their files), a job file or a wire
//! format.

mod cache;
pub mod clock;
mod codes;
mod error;
pub mod header;
pub mod human;
pub mod ids;
pub mod mutate;
pub mod rng;
#[cfg(feature = "shutdown")]
pub mod shutdown;
pub mod suggest;

pub use cache::cache_folder;
pub use clock::{Clock, ManualClock, SharedClock, SystemClock, Timestamp};
pub use codes::{Code, code};
pub use error::{Error, Kind, Result, ResultExt};
pub use ids::{Fence, Generation, IdSource, JobId, Step, TaskName, Tenant, Term, UlidSource, WorkerId};
