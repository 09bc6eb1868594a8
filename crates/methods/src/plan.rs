//! What a method will build on a model, known before any tensor exists.

use pleach_nn::{Init, SiteId};

/// One trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Key in `adapter_model.safetensors`.
    pub name: String,
    /// The site it belongs to.
    pub site: SiteId,
    /// What it is there, such as `lora_A`. With [`Init::Base`]: `weight` or `bias`, which it is a copy of.
    pub part: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// How it begins.
    pub init: Init,
}

impl PlannedTensor {
    /// Its number of scalars.
    #[must_use]
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }
}

/// What a method will build on a model. The order of tensors is that of the parameter tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Trainable tensors.
    pub tensors: Vec<PlannedTensor>,
    /// The sites that the method acts on, in the model's order, without those of modules that are saved whole.
    pub sites: Vec<SiteId>,
    /// The sites of modules that are trained and saved whole.
    pub saved: Vec<SiteId>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Trainable parameters.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::numel).sum()
    }

    /// The tensor that is `part` of a site.
    #[must_use]
    pub fn part(&self, site: SiteId, part: &str) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|tensor| tensor.site == site && tensor.part == part)
    }
}
