//! The copy of the sources, and a target folder that begins with everything already compiled of other people's packages.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::paths::Paths;
use crate::{cmd, ui};

/// Compiled dependencies and what cargo knows of them. Not the programs themselves: those are rewritten in place.
const SHARED: &[&str] = &["deps", "build", ".fingerprint"];

/// Where mutations are tried.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The copy of the repository.
    pub(super) tree: PathBuf,
    target: PathBuf,
    libtorch: PathBuf,
    protoc: PathBuf,
}

impl Scratch {
    /// Brings the copy up to date. Files that are the same are not written, so that cargo builds only what changed.
    pub(super) fn prepare(paths: &Paths) -> Result<Self> {
        let folder = paths.target().join("mutate");
        let tool =
            |variable: &str, name: &str| std::env::var_os(variable).map_or_else(|| paths.local(name), PathBuf::from);
        let scratch = Self {
            tree: folder.join("tree"),
            target: folder.join("target"),
            libtorch: tool("LIBTORCH", "libtorch"),
            protoc: tool("PROTOC", "bin/protox"),
        };
        ui::say("copy", scratch.tree.display());
        scratch.copy(paths)?;
        if !scratch.target.exists() {
            for name in SHARED {
                link(&paths.target().join("debug").join(name), &scratch.target.join("debug").join(name))?;
            }
        }
        Ok(scratch)
    }

    fn copy(&self, paths: &Paths) -> Result<()> {
        let files = cmd::tracked(paths)?;
        let wanted: std::collections::BTreeSet<_> = files.iter().map(|file| self.tree.join(file)).collect();
        for found in WalkDir::new(&self.tree).into_iter().filter_map(Result::ok).filter(|f| f.file_type().is_file()) {
            if !wanted.contains(found.path()) {
                fs::remove_file(found.path()).with_context(|| format!("cannot remove {}", found.path().display()))?;
            }
        }
        for file in &files {
            let (from, to) = (paths.root.join(file), self.tree.join(file));
            let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            }
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(())
    }

    /// A cargo that works on the copy.
    pub(super) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        command.env("LIBTORCH", &self.libtorch).env("PROTOC", &self.protoc);
        for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
            command.env_remove(name);
        }
        command
    }
}

/// The same files under another folder. Only compiled packages of others are ever read through these links: ours have
/// other names in the copy, since their path is another one.
fn link(from: &Path, to: &Path) -> Result<()> {
    for found in WalkDir::new(from).into_iter().filter_map(Result::ok) {
        let at = to.join(found.path().strip_prefix(from)?);
        let done = if found.file_type().is_dir() {
            fs::create_dir_all(&at)
        } else if found.file_type().is_file() {
            fs::hard_link(found.path(), &at)
        } else {
            Ok(())
        };
        // A build that runs meanwhile may take its temporary files away; what misses is built anew.
        match done {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot link {}", at.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_are_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/x.rlib"), "compiled").unwrap();
        link(&from, &folder.path().join("to")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("to/a/b/x.rlib")).unwrap(), "compiled");
        link(&folder.path().join("nowhere"), &folder.path().join("none")).unwrap();
    }
}
