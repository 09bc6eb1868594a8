//! Sparse differences of several trainings on one model, added up: a language's and a task's.

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Precision, TensorFile, tensor_from_entry};
use tch::{Device, Kind, Tensor};

use super::{Opened, Recorded};
use crate::adapter::lt_sft::gaps::Gaps;
use crate::adapter::lt_sft::sft::{Sft, Weights};
use crate::adapter::lt_sft::{BASE, Config};
use crate::adapter::{Adapter, AdapterConfig, Options};
use crate::import::{Imported, WEIGHTS, import};
use crate::plan::Plan;

/// The sum of the differences in these folders on their base model, as one adapter. Entries that several have add up; what
/// a difference was trained on top of (`base_sfts`) is not part of it. With `heads`, modules that were trained whole are
/// those of the last folder.
///
/// # Errors
/// `METHOD_CONFIG` when a folder is of another method, or heads are asked for that the last folder does not have;
/// `ADAPTER_BASE` when one was trained on another model; `ADAPTER_GATE`; those of [`super::open()`].
pub fn compose(folders: &[&Path], base: &Path, heads: bool, unpublishable: bool) -> Result<Opened> {
    let parts = folders.iter().map(|folder| Part::open(folder, unpublishable)).collect::<Result<Vec<_>>>()?;
    let last = parts.last().ok_or_else(|| code::BAD_VALUE.error("there is nothing to compose"))?;
    let (dir, model) = pleach_nn::open(base, &last.imported.head_options()?)?;
    let fingerprint = dir.fingerprint()?;
    for part in &parts {
        part.recorded.check_base(&format!("{}: the difference", part.folder.display()), &fingerprint)?;
    }
    let config = together(&parts, heads);
    let plan = Arc::new(config.plan(model.as_ref())?);
    let values = sum(&parts, &plan, heads)?;
    let backbone = model.build(&dir, Device::Cpu, Precision::Fp32)?;
    let adapter = Adapter::build(Arc::new(config), plan, backbone.as_ref(), Key::seed(0), Some(&values))?;
    Ok(Opened { dir, backbone, adapter })
}

/// One folder.
struct Part<'a> {
    folder: &'a Path,
    imported: Imported,
    recorded: Recorded,
    config: Config,
    sft: Sft,
}

impl<'a> Part<'a> {
    fn open(folder: &'a Path, unpublishable: bool) -> Result<Self> {
        let imported = import(folder)?;
        let (name, ours) = (imported.config.card().name, Config::CARD.name);
        if name != ours {
            return Err(code::METHOD_CONFIG
                .error(format!("{}: is of the method {name}, whose adapters do not add up", folder.display()))
                .hint(format!("only differences of {ours} are composed")));
        }
        let recorded = Recorded::read(folder)?;
        if !unpublishable {
            recorded.check_gate(folder)?;
        }
        let fields = imported.map.iter().filter(|(key, _)| crate::options::names::<Config>().contains(key));
        let fields = fields.map(|(key, value)| (key.clone(), value.clone())).collect();
        let config = crate::options::typed(&fields, "adapter_config.json", &[])?;
        let sft = read(&TensorFile::open(&folder.join(WEIGHTS))?).map_err(|error| error.at(folder.display()))?;
        Ok(Self { folder, imported, recorded, config, sft })
    }
}

/// The difference in a file, without what it was trained on top of.
fn read(file: &TensorFile) -> Result<Sft> {
    let mut sft = Sft::default();
    let get = |name: &str| file.get(name).map(|entry| tensor_from_entry(&entry)).transpose();
    for name in file.names() {
        if let Some(own) = name.strip_suffix(".index_steps") {
            let values = get(&format!("{own}.values"))?;
            if let (Some(index_steps), Some(values), false) = (get(name)?, values, own.ends_with(BASE)) {
                sft.diff.insert(own.to_owned(), Gaps { index_steps, values: values.to_kind(Kind::Float) });
            }
        } else if let (Some(tensor), false) = (get(name)?, name.ends_with(".values")) {
            sft.abs.insert(name.to_owned(), tensor);
        }
    }
    Ok(sft)
}

/// The options of a difference that may have the entries of all of them.
fn together(parts: &[Part<'_>], heads: bool) -> Config {
    let all = |frozen: fn(&Config) -> bool| parts.iter().all(|part| frozen(&part.config));
    let last = parts.last().map(|part| part.config.clone()).unwrap_or_default();
    Config {
        freeze_layer_norm: all(|config| config.freeze_layer_norm),
        freeze_embeddings: all(|config| config.freeze_embeddings),
        freeze_head: !heads || last.freeze_head,
        freeze_decoder: !heads || last.freeze_decoder,
        ft_params_num: Some(parts.iter().map(|part| part.sft.entries()).sum::<u64>().max(1)),
        n_ft_iterations: 1,
        base_sfts: Vec::new(),
        maskable: None,
        ..last
    }
}

/// Dense sums by name, and heads.
fn sum(parts: &[Part<'_>], plan: &Plan, heads: bool) -> Result<Weights> {
    let mut weights = Weights::new();
    for tensor in plan.trained() {
        let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
        weights.insert(tensor.name.clone(), Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
    }
    for (at, part) in parts.iter().enumerate() {
        let last = at + 1 == parts.len();
        part.sft.apply(&mut weights, 1.0, heads && last).map_err(|error| error.at(part.folder.display()))?;
    }
    Ok(weights)
}
