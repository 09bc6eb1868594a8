//! The training step and the engine around it: the [`Engine`] of operations, its first client [`run_job`], and what they
//! are made of: optimisers, schedules, losses with global denominators, evaluation, the checkpoint gate.
//!
//! One process is one rank. The same operations in the same order on every rank keep adapters and optimisers equal
//! everywhere; each step ends with the ranks agreeing on that. Deliberately not here: the network (`comm`), who trains
//! what (the coordinator), object keys (`store`), which rows a step has (`data`).

mod agree;
pub mod clip;
mod engine;
pub mod eval;
mod feed;
mod flat;
mod gate;
mod job;
mod lanes;
pub mod loss;
mod memory;
mod observer;
pub mod optim;
pub mod parity;
mod phase;
mod record;
pub mod schedule;
mod stop;
mod times;

pub use engine::{
    Course, CourseRows, Engine, Forwarded, Labelled, Mode, Objective, PassInput, Saved, StepBatch, StepResult,
    TaskSetup, Word, forward,
};
pub use feed::{FEED_VERSION, FedLane, FeedLog, FeedRow, FeedSink, ResumedFrom};
pub use job::{JobContext, Outcome, Preparation, Warm, prepare, run_job};
pub use lanes::of_rank as lanes_of_rank;
pub use memory::{peak_bytes, resident_bytes};
pub use observer::{DurableRow, EvalRow, Level, Observer, Silent, StepRow, TaskStatus};
pub use phase::Phase;
pub use record::{CommitRow, Heads, Record, Recorded};
pub use stop::{StopSignal, Wish};
pub use times::{Stage, StepTimes, Stopwatch};
