//! The parts that families are assembled from. Each has a torch-free specification, which names its sites and
//! tensors, and with the feature `torch` a loaded form that runs. A family is a list of specifications.

// Specifications are read when models run; without tensors they only name things.
#![cfg_attr(not(feature = "torch"), allow(dead_code))]

mod alike;
mod attention;
mod blueprint;
mod builder;
mod conv;
mod core;
mod decoder;
mod draft;
mod embedding;
mod encoder;
mod end;
mod front;
mod head;
pub(crate) mod layer;
mod linear;
mod mlp;
mod norm;
mod relative;
mod rotary;
mod sparse;
mod stage;
mod towers;
pub(crate) mod vision;

pub(crate) use attention::{AttentionSpec, Maps};
pub(crate) use blueprint::{Blueprint, Trunk};
pub(crate) use builder::Builder;
pub(crate) use conv::{ConvSpec, Window};
pub(crate) use core::{Core, CoreSpec};
pub(crate) use decoder::{Decoder, Experts, heads, upper_windows, windows};
pub(crate) use draft::{Draft, LmHead, Names, Sizes};
pub(crate) use embedding::{Count, EmbedSpec, PositionSpec};
pub(crate) use encoder::{BERT, Encoder, EncoderNames, even_heads, roberta};
pub(crate) use end::{EndSpec, Mark};
pub(crate) use front::{BodySpec, FrontSpec, SamplesSpec};
pub(crate) use head::{HeadSpec, MappedSpec, embedding_options};
pub(crate) use layer::{Frame, HalfNames, LayerSpec, Order};
pub(crate) use linear::LinearSpec;
pub(crate) use mlp::{Activation, FeedSpec, MlpSpec};
pub(crate) use norm::{NormKind, NormShape, NormSpec};
pub(crate) use relative::{Distances, RelativeSpec};
pub(crate) use rotary::{Rope, RotarySpec};
pub(crate) use sparse::{ExpertsSpec, SparseSpec};
pub(crate) use stage::{PROJ, PartNames, Stage, StageNames};
pub(crate) use towers::{TowerSpec, Towers};
pub(crate) use vision::Patches;
