//! An adapter folder on its base model.

use std::path::Path;
use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{Backbone, ModelDir, Precision};
use tch::Device;

use super::Recorded;
use crate::adapter::Adapter;
use crate::adapterhub;
use crate::import::{Imported, import};

/// An adapter and the model it belongs to, with tensors, on the CPU.
pub struct Opened {
    /// The model's folder.
    pub dir: ModelDir,
    /// The model, in float32.
    pub backbone: Box<dyn Backbone>,
    /// The adapter, with the file's values.
    pub adapter: Adapter,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("dir", &self.dir.path())
            .field("method", &self.adapter.config().card().name)
            .finish_non_exhaustive()
    }
}

/// Opens an adapter folder, of PEFT's layout or AdapterHub's, on a model folder, with all checks: options, names and shapes of tensors, finite values,
/// copies of frozen weights, the recorded fingerprint.
///
/// # Errors
/// As [`import`] and [`pleach_nn::open`]; `ADAPTER_FORMAT` naming the tensor that does not fit; `ADAPTER_BASE` when the
/// adapter is of another model.
pub fn open(adapter: &Path, base: &Path) -> Result<Opened> {
    open_on(adapter, base, Some(&Recorded::read(adapter)?))
}

/// [`open`], with what is recorded of the base elsewhere, or with no such check: for merged models, which are no base.
///
/// # Errors
/// As [`open`].
pub fn open_on(adapter: &Path, base: &Path, recorded: Option<&Recorded>) -> Result<Opened> {
    let imported = if adapterhub::is_folder(adapter) { None } else { Some(import(adapter)?) };
    let head = imported.as_ref().map(Imported::head_options).transpose()?.unwrap_or_default();
    let (dir, config) = pleach_nn::open(base, &head)?;
    if let Some(recorded) = recorded.filter(|recorded| recorded.base_fingerprint.is_some()) {
        recorded.check_base(&format!("{}: the adapter", adapter.display()), &dir.fingerprint()?)?;
    }
    let Some(imported) = imported else {
        let backbone = config.build(&dir, Device::Cpu, Precision::Fp32)?;
        let adapter = adapterhub::import(adapter, backbone.as_ref())?;
        return Ok(Opened { dir, backbone, adapter });
    };
    let plan = Arc::new(imported.config.plan(config.as_ref())?);
    imported.check(&plan)?;
    let values = imported.values()?;
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32)?;
    let (config, key) = (Arc::clone(&imported.config), Key::seed(0));
    let adapter = Adapter::build(config, plan, backbone.as_ref(), key, Some(&values))
        .map_err(|error| error.at(adapter.display()))?;
    Ok(Opened { dir, backbone, adapter })
}

/// [`open`], for what is given to others: a step must have passed its gate, unless `unpublishable` says that it may not
/// have.
///
/// # Errors
/// As [`open`]; `ADAPTER_GATE`.
pub fn open_checked(adapter: &Path, base: &Path, unpublishable: bool) -> Result<Opened> {
    if !unpublishable {
        Recorded::read(adapter)?.check_gate(adapter)?;
    }
    open(adapter, base)
}
