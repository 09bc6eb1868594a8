//! Frozen backbones as seen by adapter methods: named places ([`Site`]) where a method may act, and the machinery
//! that runs a frozen model once for many adapters.
//!
//! Without the feature `torch` this crate knows shapes only: model folders ([`ModelDir`]), families ([`open`]), sites
//! and their selection ([`Target`]). With it come [`Layout`], [`Forward`], the hooks and the runnable [`Backbone`].
//!
//! Not here: any method (crate `pleach-methods`), losses, optimisers, collectives (crate `pleach-train`).

mod backbone;
mod blocks;
mod families;
mod model;
mod reads;
#[cfg(feature = "torch")]
mod run;
mod site;
mod target;

pub use backbone::{
    BackboneConfig, Found, HeadKind, HeadOptions, Init, Mixing, ModelInfo, Pieces, Pooling, Precision, TensorInfo,
    in_folder,
};
pub use families::{Family, configure, families, open, write_drawn, write_tiny};
pub use model::{Entry, ModelDir, TensorFile, keep_memory, release_memory};
pub use reads::{Reads, ShiftIds, Source};
pub use safetensors::Dtype;
pub use site::{Dims, Heads, Part, Role, Site, SiteId, SiteWeight, Sites, WeightLayout};
pub use target::{Indices, Modules, Patterns, Target};

#[cfg(feature = "torch")]
pub use run::{
    Backbone, BaseOp, Form, Forward, Group, HookSet, Inputs, Layout, NoHooks, Op, OpWeights, OutTensor, Output, Pair,
    ParamTree, Peers, Replaced, SCORING_PASS, ScoredPass, Scoring, Segment, SiteCx, SiteHook, State, TensorBytes,
    Weights, draw, kind_of, tensor_from_entry, to_le_bytes, write_tensors,
};
