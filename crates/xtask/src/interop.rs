//! The Python environment of `tests/interop`: made once per list of requirements, in the user's cache.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::paths::Paths;
use crate::setup::{Lock, Python, require_space};
use crate::{cmd, ui};

/// Its `python`; the first call takes minutes (about 3 GB are fetched, 5 GB kept).
pub(crate) fn python(paths: &Paths) -> Result<PathBuf> {
    let list = paths.root.join("tests/interop/py/requirements.txt");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let hash = hex::encode(Sha256::digest(&text));
    let home = paths.cache.join(format!("interop-venv-{}", &hash[..12]));
    let python = home.join("bin/python");
    if home.join("done").is_file() && python.exists() {
        return Ok(python);
    }
    let _lock = Lock::take(&paths.cache, "interop")?;
    if home.join("done").is_file() && python.exists() {
        return Ok(python);
    }
    require_space(&paths.cache, 9_000_000_000)?;
    ui::say("installing", "PyTorch, transformers, peft, boto3, grpcio for the interop tests, once for this user");
    if home.exists() {
        // Half a one, of a run that was interrupted. An environment cannot be moved, so it is made in place.
        fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    let base = Python::find()?;
    cmd::run(base.command().args(["-m", "venv"]).arg(&home))
        .context("cannot make a virtual environment (Debian: python3-venv)")?;
    let mut pip = std::process::Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-compile",
        "-r",
    ]);
    cmd::run(pip.arg(&list))?;
    fs::write(home.join("done"), text)?;
    Ok(python)
}
