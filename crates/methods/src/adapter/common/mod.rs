//! What methods share, so that each file holds its own mathematics only: the options that choose sites, PEFT's fields
//! of `adapter_config.json`, checks of options, and with tensors masks and weights in their stored layouts.

#![allow(unused_imports, dead_code, reason = "each helper serves the methods that need it")]

mod activation;
#[cfg(feature = "torch")]
mod added;
pub(crate) mod biases;
#[cfg(feature = "torch")]
mod branch;
mod check;
#[cfg(feature = "torch")]
mod dropout;
mod lycoris;
mod own;
mod peft;
mod planned;
mod projection;
#[cfg(feature = "torch")]
mod relay;
mod schema;
mod targets;
mod usual;
#[cfg(feature = "torch")]
mod weights;

pub(crate) use activation::Activation;
#[cfg(feature = "torch")]
pub(crate) use added::{Added, Addition, at_sites};
pub use biases::Bias;
#[cfg(feature = "torch")]
pub(crate) use branch::Branch;
pub(crate) use check::{plain_linear, positive, positive_number, refuse, share};
#[cfg(feature = "torch")]
pub(crate) use dropout::{Dropout, every_token, keep_mask, sequence_mean, whole_site};
pub use lycoris::Lycoris;
pub(crate) use lycoris::core;
#[cfg(feature = "torch")]
pub(crate) use lycoris::{Dropped, Product, inner, outer};
pub(crate) use own::{own_config, own_fields};
pub(crate) use peft::{PEFT_VERSION, number, peft_config, without_exclude};
#[cfg(feature = "torch")]
pub(crate) use planned::sizes;
pub(crate) use planned::{parameter, sample_job, shared_tensor, usual_init, window};
pub use projection::Projection;
#[cfg(feature = "torch")]
pub(crate) use relay::Relay;
pub(crate) use schema::{IndicesSchema, ModulesSchema};
pub use targets::{Layers, Targets};
pub(crate) use targets::{Selection, key_value, query_value};
pub(crate) use usual::{LINEAR, LINEAR_AND_CONV, linear_plan, options, peft_tuner, plan_at};
#[cfg(feature = "torch")]
pub(crate) use weights::{dense, linear_delta, restored, with_weight};
