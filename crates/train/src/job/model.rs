//! The frozen model, loaded once and kept between generations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pleach_base::{Result, code};
use pleach_data::Encoder;
use pleach_nn::{Backbone, BackboneConfig, HeadOptions};
use pleach_spec::Job;
use tch::Device;

use super::keepalive;
use super::task::JobTask;
use crate::observer::Observer;

/// What is kept between the generations of a job: the model, its fingerprint, the tokenizers, and what belongs to the
/// job itself: its data, adapters, and the last states of its tasks. Empty at first.
#[derive(Default)]
pub struct Warm {
    /// What the model was loaded for; another job's model is dropped.
    key: String,
    pub(super) model: Option<Model>,
    pub(super) encoders: Encoders,
    /// The job that the tasks are of.
    pub(super) ready_for: String,
    pub(super) tasks: Vec<JobTask>,
}

/// A loaded model.
pub(super) struct Model {
    pub(super) backbone: Box<dyn Backbone>,
    pub(super) folder: PathBuf,
    /// sha256 over the weights.
    pub(super) fingerprint: String,
}

/// Tokenizers with what they are used for.
#[derive(Default)]
pub(super) struct Encoders(BTreeMap<String, Arc<Encoder>>);

impl Warm {
    /// Loads the job's model, unless it is the one that is kept.
    pub(super) fn load(&mut self, job: &Job, device: Device, observer: &dyn Observer) -> Result<()> {
        let options = pleach_methods::head_options(job)?;
        let key = format!("{:?} {options:?} {device:?}", job.spec.backbone);
        if self.key != key {
            // The old one goes first: two models may not fit.
            *self = Self::default();
        }
        let model = match self.model.take() {
            Some(model) => model,
            None => keepalive::during(observer, || load(job, &options, device))?,
        };
        self.key = key;
        self.model = Some(model);
        Ok(())
    }
}

impl Encoders {
    /// The encoder of this key, opened now unless it is kept.
    pub(super) fn get(&mut self, key: &str, open: impl FnOnce() -> Result<Encoder>) -> Result<Arc<Encoder>> {
        if let Some(encoder) = self.0.get(key) {
            return Ok(Arc::clone(encoder));
        }
        let encoder = Arc::new(open()?);
        self.0.insert(key.to_owned(), Arc::clone(&encoder));
        Ok(encoder)
    }
}

impl Model {
    pub(super) fn config(&self) -> &dyn BackboneConfig {
        self.backbone.config()
    }
}

fn load(job: &Job, options: &HeadOptions, device: Device) -> Result<Model> {
    let path = &job.spec.backbone.path;
    if path.contains("://") {
        return Err(code::MODEL_MISSING
            .error(format!("spec.backbone.path: `{path}` is not a local folder"))
            .hint("copy the model to a folder that every worker sees under the same path"));
    }
    let folder = Path::new(path);
    let (dir, config) = pleach_nn::open(folder, options)?;
    let fingerprint = dir.fingerprint()?;
    let backbone = config.build(&dir, device, pleach_methods::precision(job))?;
    Ok(Model { backbone, folder: folder.to_owned(), fingerprint })
}
