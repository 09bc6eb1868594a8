//! Adapter folders, written.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use pleach_nn::{OutTensor, write_tensors};
use serde_json::Value;

use super::folder::{new_folder, whole, write_json};
use super::{Opened, Recorded};
use crate::adapter::Export;
use crate::adapterhub;
use crate::import::{CONFIG, WEIGHTS, import};

/// Writes an opened adapter into the new folder `to` as this build would have saved it: all fields of
/// `adapter_config.json` with their values, tensors in float32, no copies of frozen weights. `base` becomes
/// `base_model_name_or_path`.
///
/// # Errors
/// `BAD_VALUE` when the folder is not empty, `IO`.
pub fn write_adapter(opened: &Opened, to: &Path, base: &str) -> Result<()> {
    new_folder(to)?;
    let Opened { backbone, adapter, .. } = opened;
    let config = adapter.adapter_config(backbone.config(), &Export { base })?;
    let tensors = adapter.exported()?;
    let out: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name.clone(), OutTensor::of(tensor))).collect();
    whole(&to.join(WEIGHTS), |path| write_tensors(path, out))?;
    write_json(&to.join(CONFIG), &config)
}

/// Writes an opened adapter into the new folder `to` as AdapterHub's library does, under the adapter name `name`.
///
/// # Errors
/// Those of [`adapterhub::export`]: `METHOD_CONFIG` for a method that the library does not have; `BAD_VALUE` when the
/// folder is not empty; `IO`.
pub fn write_adapterhub(opened: &Opened, to: &Path, base: &str, name: &str) -> Result<()> {
    let files = adapterhub::export(&opened.adapter, opened.backbone.config(), base, name)?;
    new_folder(to)?;
    for (name, bytes) in files {
        let failed = || format!("{}: cannot be written", to.join(&name).display());
        whole(&to.join(&name), |path| std::fs::write(path, &bytes).or_code(code::IO, failed))?;
    }
    Ok(())
}

/// Copies an adapter folder of PEFT's layout into the new folder `to`: `adapter_config.json`, whose
/// `base_model_name_or_path` becomes `base` if given, and `adapter_model.safetensors`, unchanged.
///
/// # Errors
/// As [`import`]; `ADAPTER_GATE` for a step that did not pass its gate, unless `unpublishable`; `METHOD_CONFIG` for a
/// method that PEFT does not know; `BAD_VALUE` when `to` is not empty; `IO`.
pub fn copy_adapter(from: &Path, to: &Path, base: Option<&str>, unpublishable: bool) -> Result<()> {
    let imported = import(from)?;
    if !unpublishable {
        Recorded::read(from)?.check_gate(from)?;
    }
    let card = imported.config.card();
    if card.peft_type.is_none() {
        return Err(code::METHOD_CONFIG
            .error(format!("{}: PEFT has no method like {}", from.display(), card.name))
            .hint("`--format merged` gives a model that needs no adapter, where the method can be merged"));
    }
    imported.values()?;
    new_folder(to)?;
    let mut config = imported.map.clone();
    if let Some(base) = base {
        config.insert("base_model_name_or_path".to_owned(), Value::String(base.to_owned()));
    }
    let source = from.join(WEIGHTS);
    let failed = || format!("{}: cannot be copied to {}", source.display(), to.display());
    whole(&to.join(WEIGHTS), |path| std::fs::copy(&source, path).map(drop).or_code(code::IO, failed))?;
    write_json(&to.join(CONFIG), &config)
}
