//! Whole models among the recordings: a backbone of the product's own from the recorded frozen tensors.

use std::collections::BTreeMap;

use pleach_base::{Result, ResultExt as _, code};
use pleach_nn::{
    Backbone, BackboneConfig, HeadKind, HeadOptions, ModelDir, OutTensor, Precision, TensorFile, configure,
};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

/// A configured model, and the same with its weights.
pub(super) struct Model {
    pub(super) config: Box<dyn BackboneConfig>,
    pub(super) backbone: Box<dyn Backbone>,
}

impl Model {
    /// The causal language model of this `config.json` with these tensors, in float32 on the CPU.
    ///
    /// # Errors
    /// Those of configuring and building a model: a field that is not built, a tensor that is missing.
    pub(super) fn causal(config: Map<String, Value>, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let entries = tensors.iter().map(|(name, tensor)| (name, OutTensor::of(tensor).to(Kind::Float)));
        let bytes =
            safetensors::serialize(entries, None).or_code(code::INTERNAL, || "no file of weights".to_owned())?;
        let dir = ModelDir::of_config(config).with_weights(TensorFile::in_memory(&bytes)?);
        let options = HeadOptions { kind: Some(HeadKind::CausalLm), ..HeadOptions::default() };
        let config = configure(&dir, &options)?;
        let backbone = config.build(&dir, Device::Cpu, Precision::Fp32)?;
        Ok(Self { config, backbone })
    }
}
