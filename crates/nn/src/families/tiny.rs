//! Tiny models with drawn weights: every family can be run by tests and examples without a file of anyone's.

use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt, code};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Map, Value};

use super::{Family, configure};
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, TensorInfo};
use crate::model::ModelDir;
use crate::site::Role;

/// Writes a model folder of the family's tiny configuration: `config.json` and `model.safetensors` with weights drawn
/// from `seed`, large enough that no part of the model can be left out unnoticed.
///
/// # Errors
/// `MODEL_CONFIG` for a head that the family does not have, `IO` when the folder cannot be written.
pub fn write_tiny(family: &dyn Family, head: Option<HeadKind>, dir: &Path, seed: u64) -> Result<()> {
    let config: Map<String, Value> = serde_json::from_str(family.tiny())
        .or_code(code::MODEL_CONFIG, || format!("the tiny configuration of {} is no JSON", family.name()))?;
    write_drawn(&config, head, dir, seed)
}

/// Writes a model folder of a configuration, with weights drawn from `seed`.
///
/// # Errors
/// As [`write_tiny`].
pub fn write_drawn(config: &Map<String, Value>, head: Option<HeadKind>, dir: &Path, seed: u64) -> Result<()> {
    let failed = || format!("{}: cannot be written", dir.display());
    std::fs::create_dir_all(dir).or_code(code::IO, failed)?;
    std::fs::write(dir.join("config.json"), Value::Object(config.clone()).to_string()).or_code(code::IO, failed)?;
    let folder = ModelDir::config_only(dir)?;
    let model = configure(&folder, &HeadOptions { kind: head, ..HeadOptions::default() })?;
    let key = Key::seed(seed).named("tiny");
    let bytes = model.tensors().iter().map(|tensor| (tensor, draw(&*model, tensor, key)));
    let bytes: Vec<_> = bytes.collect();
    let views = bytes.iter().map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).or_code(code::SAFETENSORS, failed)?;
        Ok((tensor.name.as_str(), view))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    serialize_to_file(views, None, &dir.join("model.safetensors")).or_code(code::IO, failed)
}

/// Little-endian float32 values: weights of normalisations around one, biases around zero, the rest so that widths
/// neither blow up nor die out.
fn draw(model: &dyn BackboneConfig, tensor: &TensorInfo, key: Key) -> Vec<u8> {
    let is_norm = model
        .sites()
        .iter()
        .any(|site| site.role == Role::Norm && site.weight.as_ref().is_some_and(|weight| weight.name == tensor.name));
    let (mean, std) = match tensor.shape.as_slice() {
        _ if is_norm => (1.0, 0.1),
        [] | [_] => (0.0, 0.1),
        shape => (0.0, 1.0 / (shape[1..].iter().product::<usize>() as f32).sqrt()),
    };
    let mut rng = key.named(&tensor.name).rng();
    let count: usize = tensor.shape.iter().product();
    (0..count).flat_map(|_| (mean + std * rng.normal()).to_le_bytes()).collect()
}
