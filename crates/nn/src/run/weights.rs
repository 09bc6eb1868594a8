//! Frozen weights from a model folder onto a device.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use tch::{Device, Kind, Tensor};

use super::bytes::tensor_from_entry;
use super::draw::draw;
use super::hooks::OpWeights;
use super::mapped::Mapped;
use crate::backbone::{Found, ModelInfo, Precision, TensorInfo, find};
use crate::model::{Entry, ModelDir};
use crate::site::Site;

impl Precision {
    /// The kind of frozen tensors.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// A reader of frozen weights for one build.
pub struct Weights<'a> {
    info: &'a ModelInfo,
    tensors: &'a [TensorInfo],
    dir: &'a ModelDir,
    device: Device,
    kind: Kind,
    /// What was read already: tied modules share one tensor.
    read: RefCell<BTreeMap<String, Tensor>>,
    mapped: Mapped,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(
        info: &'a ModelInfo,
        tensors: &'a [TensorInfo],
        dir: &'a ModelDir,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self { info, tensors, dir, device, kind: precision.kind(), read: RefCell::default(), mapped: Mapped::default() }
    }

    /// The tensor of this name, without gradient. A head that no file has is drawn from its name alone, so that every
    /// rank and every later run has the same.
    ///
    /// # Errors
    /// As [`crate::BackboneConfig::build`].
    pub fn get(&self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.read.borrow().get(name) {
            return Ok(tensor.shallow_clone());
        }
        let tensor = self
            .tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| code::INTERNAL.error(format!("tensor `{name}` is not in the backbone's list")))?;
        let loaded = match find(self.info, tensor, self.dir)? {
            Found::Whole(entry) => {
                let mapped = if self.device == Device::Cpu { self.mapped.tensor(&entry, self.kind) } else { None };
                mapped.map_or_else(|| tensor_from_entry(&entry), Ok)?
            }
            Found::Pieces(experts) => {
                let expert = |pieces: Vec<Entry<'_>>| {
                    let pieces: Vec<_> = pieces.iter().map(tensor_from_entry).collect::<Result<_>>()?;
                    Ok(Tensor::cat(&pieces, 0))
                };
                let experts: Vec<_> = experts.into_iter().map(expert).collect::<Result<_>>()?;
                Tensor::stack(&experts, 0)
            }
            Found::Nowhere => {
                let key = Key::seed(0).named("fresh").named(name);
                let fresh = tensor.fresh.and_then(|init| draw(init, key, &tensor.shape, Device::Cpu));
                fresh.ok_or_else(|| code::INTERNAL.error(format!("tensor `{name}` has no values to begin with")))?
            }
        };
        let loaded = loaded.to_kind(self.kind).to_device(self.device);
        self.read.borrow_mut().insert(name.to_owned(), loaded.shallow_clone());
        Ok(loaded)
    }

    /// Weight and bias of a site.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn of(&self, site: &Site) -> Result<OpWeights> {
        let weight =
            site.weight.as_ref().ok_or_else(|| code::INTERNAL.error(format!("site `{}` has no weight", site.path)))?;
        let bias = site.bias.as_deref().map(|name| self.get(name)).transpose()?;
        Ok(OpWeights { weight: self.get(&weight.name)?, bias })
    }
}
