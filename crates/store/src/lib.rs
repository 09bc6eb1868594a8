//! Where adapters go: object storage on folders and S3, with a create-only log that decides what counts.
//!
//! A [`Writer`] puts the files of a step into a folder that it alone owns, then creates *one* log entry; readers
//! ([`TaskStore`]) follow the log and verify every length and sha256. Whoever creates the next log entry owns the
//! task; a stale writer finds its number taken and stops ([`code::STORE_FENCED`](pleach_base::code::STORE_FENCED)).
//!
//! [`Source`] reads objects that others wrote, such as training data.
//!
//! Deliberately not here: tensors (see [`tensors`] for their bytes alone), training state, the coordinator's state,
//! and any compare-and-swap: creating a key that does not exist is the only conditional write that is used.

mod address;
mod create;
mod fault;
mod json;
mod keys;
mod ledger;
mod line;
mod probe;
mod pull;
mod record;
mod retain;
mod source;
mod store;
mod task;
pub mod tensors;
mod uploader;
mod writer;

pub use json::canonical as canonical_json;
pub use ledger::{Ledger, LedgerChunk, LedgerRow, decode_ledger, encode_ledger};
pub use line::Kept;
pub use pull::PulledFile;
pub use record::{
    ADAPTER_CONFIG, ADAPTER_MODEL, EntryKind, FORMAT_VERSION, Gate, LogEntry, MANIFEST, Manifest, ManifestFile,
    Snapshot, SnapshotFile, TRAINER_STATE,
};
pub use retain::{Best, Retention};
pub use source::{Source, SourceObject};
pub use store::{Store, StoreOptions};
pub use task::TaskStore;
pub use uploader::{BeginHook, DurableHook, Uploader, UploaderOptions, UploaderStatus};
pub use writer::Writer;
