//! The part with tensors: layouts, hooks, parameter trees and the runnable backbone.

mod backbone;
mod bytes;
mod draw;
mod forward;
mod hooks;
mod layout;
mod mapped;
mod out;
mod params;
mod weights;

pub use backbone::{Backbone, Inputs, Output, Pair, State};
pub use bytes::{TensorBytes, kind_of, tensor_from_entry, to_le_bytes};
pub use draw::draw;
pub use forward::Forward;
pub use hooks::{
    BaseOp, Group, HookSet, NoHooks, Op, OpWeights, Peers, Replaced, SCORING_PASS, ScoredPass, Scoring, SiteCx,
    SiteHook,
};
pub use layout::{Form, Layout, Segment};
pub use out::{OutTensor, write_tensors};
pub use params::ParamTree;
pub use weights::Weights;
