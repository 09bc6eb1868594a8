//! The parts that families are assembled from. Each has a torch-free specification, which names its sites and
//! tensors, and with the feature `torch` a loaded form that runs. A family is a list of specifications.

// Specifications are read when models run; without tensors they only name things.
#![cfg_attr(not(feature = "torch"), allow(dead_code))]

mod attention;
mod blueprint;
mod builder;
mod core;
mod embedding;
mod head;
pub(crate) mod layer;
mod linear;
mod mlp;
mod norm;
mod relative;
mod rotary;

pub(crate) use attention::AttentionSpec;
pub(crate) use blueprint::Blueprint;
pub(crate) use builder::Builder;
pub(crate) use core::CoreSpec;
pub(crate) use embedding::EmbedSpec;
pub(crate) use head::{HeadSpec, embedding_options};
pub(crate) use layer::{LayerSpec, Order};
pub(crate) use linear::LinearSpec;
pub(crate) use mlp::{Activation, MlpSpec};
pub(crate) use norm::{NormKind, NormSpec};
pub(crate) use relative::{Distances, RelativeSpec};
pub(crate) use rotary::RotarySpec;
