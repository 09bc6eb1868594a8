//! What nearly every method's file names.

pub(crate) use pleach_base::{Result, code};
pub(crate) use pleach_nn::{BackboneConfig, Init, Role, Site};
pub(crate) use schemars::JsonSchema;
pub(crate) use serde::{Deserialize, Serialize};
pub(crate) use serde_json::{Map, Value};

pub(crate) use super::common::{
    Bias, Layers, Targets, options, parameter, peft_tuner, positive, refuse, sample_job, share,
};
pub(crate) use super::{AdapterConfig, Export, Half, Options};
pub(crate) use crate::card::{Card, Invalid, Sync};
pub(crate) use crate::plan::{Plan, PlannedTensor};
