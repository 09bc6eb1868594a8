//! Worker processes of this machine, for `pleach train`: started, watched, started anew when they die, drained.

mod child;
mod crew;
mod signals;

pub(crate) use crew::{Crew, Orders, Recruit};
pub(crate) use signals::Signals;
