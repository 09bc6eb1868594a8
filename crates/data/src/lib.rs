//! From files to batches: which rows exist ([`Dataset`]), what a row means ([`Encoder`]), which rows a step is made
//! of ([`Permutation`], [`Plan`], [`Order`]), and how examples become matrices of numbers ([`Batch`]).
//!
//! Rows are validated when a source is opened, before they are numbered: every rank that opens the same bytes with the
//! same job gets the same numbering, and can show so ([`Dataset::digest`]). From then on everything is a pure function
//! of (seed, task, step): there is no reader state to save and none to lose.
//!
//! Deliberately not here: tensors (the trainer makes them), object stores (the trainer lends a [`Fetch`]), the
//! assignment of lanes to ranks (`sched`), losses.

mod batch;
mod dataset;
mod encode;
mod example;
mod fetch;
mod fields;
mod files;
mod jsonl;
mod loader;
mod marks;
mod masks;
mod parquet;
mod permutation;
mod plan;
mod row;
mod source;
mod template;
mod tokenizer;
mod turns;

pub use batch::{BESIDE, Batch, Counts, IGNORE, Packed, Padded, Ragged, sample_digest};
pub use dataset::{Dataset, OpenOptions, RowCache, SHARD_ROWS, Shard};
pub use encode::{Encoder, Limits};
pub use example::{Content, Encoded, Example};
pub use fetch::{Fetch, RemoteFile, copies_folder};
pub use fields::{Fields, Side};
pub use loader::{LaneBatch, Loader};
pub use marks::{Marks, Understood};
pub use masks::Masks;
pub use permutation::Permutation;
pub use plan::{Cursor, EpochSteps, LaneRows, LaneStep, Order, Plan};
pub use row::{BadRow, Place, Row};
pub use template::Template;
pub use tokenizer::Tokenizer;
pub use turns::Turns;
