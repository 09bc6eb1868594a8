//! Adapters that an adapter writes: a generator reads a context and gives a plain adapter of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tch::Tensor;

/// How a context is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feeding {
    /// As one sequence.
    Concat,
    /// In chunks that know nothing of each other.
    Parallel,
    /// In chunks in one pass, each with what those before it gave.
    Sequential,
    /// The same chunk by chunk: memory does not grow with the context.
    SequentialLong,
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Token ids.
    pub ids: &'a [i64],
    /// How they are fed.
    pub feeding: Feeding,
    /// What an earlier part of the context left: [`Written::states`].
    pub before: Option<&'a BTreeMap<String, Tensor>>,
    /// `base_model_name_or_path` of what is written.
    pub base: &'a str,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// `adapter_config.json`.
    pub config: Map<String, Value>,
    /// `adapter_model.safetensors`.
    pub tensors: Vec<(String, Tensor)>,
    /// What reading on behind this context begins with, by name.
    pub states: BTreeMap<String, Tensor>,
}
