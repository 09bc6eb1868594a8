//! The Python environments of `tests/interop`: made once per list of requirements, in the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::paths::Paths;
use crate::setup::{Lock, Python, require_space};
use crate::{cmd, ui};

/// Its `python`; the first call takes minutes (about 3 GB are fetched, 5 GB kept).
pub(crate) fn python(paths: &Paths) -> Result<PathBuf> {
    let what = "PyTorch, transformers, peft, boto3, grpcio for the interop tests";
    environment(paths, "interop-venv", "requirements.txt", (9_000_000_000, what), None)
}

/// The `python` that has AdapterHub's library and the transformers that it pins. PyTorch is that of [`python`].
pub(crate) fn adapters_python(paths: &Paths) -> Result<PathBuf> {
    let shared = python(paths)?;
    let what = "AdapterHub's adapters and its transformers for the interop tests";
    environment(paths, "adapters-venv", "requirements-adapters.txt", (1_000_000_000, what), Some(&shared))
}

/// The `python` of an environment with what `list` says, named after its content. Packages that it lacks are looked for
/// in the environment of `shared`.
fn environment(
    paths: &Paths,
    name: &str,
    list: &str,
    (space, what): (u64, &str),
    shared: Option<&Path>,
) -> Result<PathBuf> {
    let list = paths.root.join("tests/interop/py").join(list);
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let shown = shared.map(|python| python.display().to_string()).unwrap_or_default();
    let hash = hex::encode(Sha256::digest(text.clone() + &shown));
    let home = paths.cache.join(format!("{name}-{}", &hash[..12]));
    let python = home.join("bin/python");
    if home.join("done").is_file() && python.exists() {
        return Ok(python);
    }
    let _lock = Lock::take(&paths.cache, "interop")?;
    if home.join("done").is_file() && python.exists() {
        return Ok(python);
    }
    require_space(&paths.cache, space)?;
    ui::say("installing", format!("{what}, once for this user"));
    if home.exists() {
        // Half a one, of a run that was interrupted. An environment cannot be moved, so it is made in place.
        fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    let base = Python::find()?;
    cmd::run(base.command().args(["-m", "venv"]).arg(&home))
        .context("cannot make a virtual environment (Debian: python3-venv)")?;
    let mut pip = Command::new(&python);
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
    if let Some(shared) = shared {
        fs::write(packages(&python)?.join("shared.pth"), packages(shared)?.display().to_string())?;
    }
    fs::write(home.join("done"), text)?;
    Ok(python)
}

/// The folder of an environment's packages.
fn packages(python: &Path) -> Result<PathBuf> {
    let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let out =
        Command::new(python).args(["-c", code]).output().with_context(|| format!("cannot run {}", python.display()))?;
    let path = String::from_utf8(out.stdout).context("a path that is no text")?;
    if !out.status.success() || path.trim().is_empty() {
        bail!("{} does not say where its packages are", python.display());
    }
    Ok(PathBuf::from(path.trim()))
}
