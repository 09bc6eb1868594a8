//! What a method will build on a model, known before any tensor exists.

use pleach_nn::{Init, SiteId};

/// What becomes of a planned tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A parameter: trained and saved.
    Trained,
    /// Frozen, but in the adapter's file: others could not make it again.
    Saved,
    /// Frozen and in no file: worked out again from the base model, the options and the key.
    Derived,
    /// Changed by the method itself after a step; kept with the trainer's state only.
    State,
    /// Changed by the method itself, and in the adapter's file.
    Moving,
}

/// One tensor of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Key in `adapter_model.safetensors`.
    pub name: String,
    /// The site it belongs to; the first of them when several share it.
    pub site: SiteId,
    /// What it is there, such as `lora_A`. With [`Init::Base`]: `weight` or `bias`, which it is a copy of.
    pub part: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// How it begins.
    pub init: Init,
    /// What becomes of it.
    pub keep: Keep,
}

impl PlannedTensor {
    /// A parameter.
    #[must_use]
    pub fn trained(name: String, site: SiteId, part: &'static str, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        Self { name, site, part, shape: shape.into(), init, keep: Keep::Trained }
    }

    /// The same tensor, kept otherwise.
    #[must_use]
    pub fn keep(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// Its number of scalars.
    #[must_use]
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }

    /// Whether the method itself changes it.
    #[must_use]
    pub fn moves(&self) -> bool {
        matches!(self.keep, Keep::State | Keep::Moving)
    }

    /// Whether it is in the adapter's file.
    #[must_use]
    pub fn in_file(&self) -> bool {
        matches!(self.keep, Keep::Trained | Keep::Saved | Keep::Moving)
    }
}

/// What a method will build on a model. The order of trained tensors is that of the parameter tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Its tensors.
    pub tensors: Vec<PlannedTensor>,
    /// The sites that the method acts on, in the model's order, without those of modules that are saved whole.
    pub sites: Vec<SiteId>,
    /// The sites of modules that are trained and saved whole.
    pub saved: Vec<SiteId>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Of a composition: the plans of its adapters in order, whose tensors are among `tensors` under these names.
    pub children: Vec<Self>,
    /// The folders of saved adapters that tensors begin with, each with the option that names it.
    pub begins: Vec<(String, std::path::PathBuf)>,
}

impl Plan {
    /// The parameters, in order.
    pub fn trained(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(|tensor| tensor.keep == Keep::Trained)
    }

    /// The number of trained scalars.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.trained().map(PlannedTensor::numel).sum()
    }

    /// The tensor that is `part` of a site.
    #[must_use]
    pub fn part(&self, site: SiteId, part: &str) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|tensor| tensor.site == site && tensor.part == part)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
