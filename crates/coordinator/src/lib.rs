//! The coordinator: takes jobs, gives workers their parts, keeps what must survive, and shows it.
//!
//! Requests come in through gRPC ([`serve`]), become commands of one actor, and the actor drives the pure scheduler
//! (`pleach-sched`). Each batch of commands is one transaction: it is stored before anybody is answered or told.
//!
//! Deliberately not here: scheduling decisions, the layout of the store, and anything that needs tensors.

mod actor;
mod admit;
mod caller;
mod config;
mod db;
mod http;
mod lead;
mod serve;
mod service;
mod view;
mod watch;

pub use config::{Config, StateStore};
pub use pleach_sched::Settings;
pub use serve::{Running, serve};
