//! Model folders as Hugging Face writes them, read without a tensor library.

mod config;
mod dir;
mod file;
mod fingerprint;
mod mmap;

pub(crate) use config::{Config, bad};
pub use dir::ModelDir;
pub use file::{Entry, TensorFile};
pub use mmap::{keep_memory, release_memory};
