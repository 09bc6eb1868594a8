//! Finding libtorch, or making a view of it from the wheels.
//!
//! A view is a folder with `include/` and `lib/` as `LIBTORCH` expects. The CPU view takes from the CUDA build of the wheel
//! what runs without CUDA (ADR 0002); the CUDA view is the whole of it with the libraries beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::pins::{CPU, CUDA, Pin, TORCH_VERSION};
use super::{disk, pip, wheel};
use crate::paths::Paths;
use crate::{cmd, ui};

/// Which libtorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// For laptops and CI.
    Cpu,
    /// With NCCL and CUDA.
    Cuda,
}

/// A usable libtorch.
#[derive(Debug)]
pub(crate) struct Libtorch {
    /// Holds `include/` and `lib/`.
    pub(crate) folder: PathBuf,
    origin: &'static str,
}

impl Libtorch {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!("{TORCH_VERSION} at {} ({})", self.folder.display(), self.origin)
    }
}

impl View {
    /// Its name under `.pleach/`.
    pub(crate) fn link_name(self) -> &'static str {
        match self {
            Self::Cpu => "libtorch",
            Self::Cuda => "libtorch-cuda",
        }
    }

    fn pins(self) -> Vec<&'static Pin> {
        match self {
            Self::Cpu => CPU.iter().collect(),
            Self::Cuda => CPU.iter().chain(CUDA).collect(),
        }
    }

    /// The folder of this very recipe: other pins or another layout get another folder, and never disturb a running build.
    fn home(self, paths: &Paths) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(b"layout 1");
        for pin in self.pins() {
            hash.update(pin.sha256);
        }
        let recipe = hex::encode(hash.finalize());
        paths.cache.join(format!("{}-{TORCH_VERSION}-{}", self.link_name(), &recipe[..8]))
    }
}

/// A libtorch that is there: the user's own, else one that setup made earlier.
pub(crate) fn find(paths: &Paths, view: View) -> Result<Option<Libtorch>> {
    if let Some(own) = users_own(paths, view)? {
        return Ok(Some(own));
    }
    let home = view.home(paths);
    Ok(home.join("done").is_file().then(|| Libtorch { folder: home.join("torch"), origin: "made by setup" }))
}

fn users_own(paths: &Paths, view: View) -> Result<Option<Libtorch>> {
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let folder = of_python()?;
        check(&folder, "LIBTORCH_USE_PYTORCH")?;
        return Ok(Some(Libtorch { folder, origin: "of the Python of LIBTORCH_USE_PYTORCH" }));
    }
    let link = paths.local(view.link_name());
    // `.cargo/config.toml` sets the variable for us when the user has not.
    let named = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|path| *path != paths.local("libtorch"));
    if let Some(folder) = named.filter(|_| view == View::Cpu) {
        check(&folder, "LIBTORCH")?;
        return Ok(Some(Libtorch { folder, origin: "from LIBTORCH" }));
    }
    if link.is_dir() && !link.is_symlink() {
        check(&link, "the folder under .pleach/")?;
        return Ok(Some(Libtorch { folder: link, origin: "put there by hand" }));
    }
    Ok(None)
}

fn of_python() -> Result<PathBuf> {
    let script = "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))";
    let out = cmd::output(std::process::Command::new("python3").args(["-c", script]))?;
    if !out.status.success() {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but `python3` has no torch; install torch=={TORCH_VERSION} there or unset it"
        );
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
}

/// Refuses a libtorch of another version, and a folder that is none.
fn check(folder: &Path, what: &str) -> Result<()> {
    if !folder.join("include").is_dir() || !folder.join("lib").is_dir() {
        bail!("{what}: {} is not a libtorch folder (no include/ and lib/ in it)", folder.display());
    }
    match version_of(folder) {
        Some(version) if version.split('+').next() == Some(TORCH_VERSION) => Ok(()),
        Some(version) => bail!("{what}: {} is libtorch {version}, Pleach needs {TORCH_VERSION}", folder.display()),
        None => bail!("{what}: {} does not say its version; Pleach needs libtorch {TORCH_VERSION}", folder.display()),
    }
}

fn version_of(folder: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let header = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"]
        .iter()
        .filter_map(|name| fs::read_to_string(folder.join(name)).ok())
        .collect::<String>();
    let number = |name: &str| {
        let line = header.lines().find(|line| line.starts_with(&format!("#define TORCH_VERSION_{name} ")))?;
        line.rsplit(' ').next().map(str::to_owned)
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}

/// Fetches, checks and unpacks; the view appears whole or not at all.
pub(crate) fn make(paths: &Paths, view: View) -> Result<Libtorch> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "setup makes libtorch for x86-64 Linux only; set LIBTORCH to a libtorch {TORCH_VERSION} for this machine"
        );
    }
    let python = pip::Python::find()?;
    let folder = pip::downloads(paths)?;
    let pins = view.pins();
    let fetched: u64 = pins.iter().map(|pin| pin.bytes).sum();
    let unpacked = if view == View::Cpu { 520_000_000 } else { fetched * 2 };
    let missing = pip::missing_bytes(paths, &pins);
    disk::require(&folder, missing + unpacked)?;
    ui::say("fetching", format!("libtorch {TORCH_VERSION}: {} of wheels, once for this user", ui::mb(missing)));

    let staging = tempfile::Builder::new().prefix("making-").tempdir_in(&paths.cache)?;
    let mut wheels = Vec::new();
    for pin in &pins {
        let file = python.fetch(paths, pin)?;
        unpack(view, pin, &file, staging.path())?;
        wheels.push(file);
    }
    finish(view, &pins, staging.path())?;
    let home = view.home(paths);
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("cannot remove the unfinished {}", home.display()))?;
    }
    fs::rename(staging.keep(), &home).with_context(|| format!("cannot create {}", home.display()))?;
    for wheel in wheels {
        // A view needs its wheels no more; failing to tidy up is no failure.
        let _ = fs::remove_file(wheel);
    }
    Ok(Libtorch { folder: home.join("torch"), origin: "made by setup" })
}

fn unpack(view: View, pin: &Pin, wheel: &Path, to: &Path) -> Result<()> {
    wheel::extract(wheel, to, |name| match view {
        View::Cpu => cpu_place(name),
        View::Cuda => cuda_place(name),
    })
    .with_context(|| format!("cannot unpack {}", pin.package))?;
    Ok(())
}

fn cpu_place(name: &str) -> Option<PathBuf> {
    let file = name.rsplit('/').next().unwrap_or_default();
    if name.starts_with("torch/include/") {
        return Some(name.into());
    }
    let wanted = match name.rsplit_once('/')?.0 {
        "torch/lib" => ["libtorch_cpu.so", "libc10.so", "libgomp.so.1"].contains(&file),
        "nvidia/cu13/lib" => ["libcudart.so.13", "libcupti.so.13"].contains(&file),
        _ => false,
    };
    wanted.then(|| Path::new("torch/lib").join(file))
}

fn cuda_place(name: &str) -> Option<PathBuf> {
    let library = (name.starts_with("torch/lib/") || name.starts_with("nvidia/") && name.contains("/lib/"))
        && name.contains(".so")
        && !name.ends_with("libtorch_python.so");
    let header = name.starts_with("torch/include/") || name.starts_with("nvidia/") && name.contains("/include/");
    (library || header).then(|| name.into())
}

/// What no wheel holds: the linker's name for the CPU library, names without versions, the version and the marker.
fn finish(view: View, pins: &[&Pin], staging: &Path) -> Result<()> {
    let torch = staging.join("torch");
    fs::write(torch.join("build-version"), format!("{TORCH_VERSION}\n"))?;
    match view {
        View::Cpu => fs::write(torch.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n")?,
        // libtorch looks for its libraries in ../../nvidia; build scripts may take either.
        View::Cuda => std::os::unix::fs::symlink("../nvidia", torch.join("nvidia"))?,
    }
    let list: String = pins.iter().map(|pin| format!("{}  {}\n", pin.sha256, pin.file)).collect();
    fs::write(staging.join("done"), list)?;
    Ok(())
}

#[cfg(test)]
mod tests;
