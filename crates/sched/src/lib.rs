//! The scheduler: which worker trains which job as which rank of which generation, and why.
//!
//! [`State::apply`] is a pure function of the state, the time and an [`Event`]; it returns [`Effect`]s for the caller to
//! persist and carry out. [`State::hear`] is its cheap half, for workers that speak by the thousand. Nothing here waits,
//! reads a clock, draws a random number or knows a wire format, so a seeded simulation can run thousands of histories a
//! second against the very code that the coordinator runs.
//!
//! Deliberately not here: job files (the caller extracts [`Needs`]), metrics and quotas.

mod apply;
mod commit;
pub mod cover;
mod effect;
mod event;
mod form;
mod gang;
pub mod invariants;
mod job;
pub mod lanes;
mod settings;
mod state;
mod worker;

pub use commit::{Commit, Head, KEPT};
pub use effect::{Assignment, Effect, StopMode};
pub use event::{Event, Part, Report};
pub use gang::{Doubt, Ending, EndingWhy, Gang, Member, MemberState, Trouble};
pub use job::{Failure, Job, JobKey, JobState, Needs};
pub use settings::Settings;
pub use state::{FORMAT_VERSION, State};
pub use worker::{Pace, Record, Warm, Worker};
