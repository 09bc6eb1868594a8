//! Where things are: the repository, its git-ignored `.pleach/`, and the user's cache folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders that every command needs.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The repository.
    pub(crate) root: PathBuf,
    /// `$XDG_CACHE_HOME/pleach`, else `~/.cache/pleach`: shared by all checkouts of this user.
    pub(crate) cache: PathBuf,
}

impl Paths {
    /// Finds them from cargo's and the user's environment.
    pub(crate) fn find() -> Result<Self> {
        // At run time first: a target folder may be shared by several checkouts.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.ancestors().nth(2).context("xtask is not inside the repository")?.to_owned();
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set; one of them says where libtorch is kept")?
            .join("pleach");
        Ok(Self { root, cache })
    }

    /// `.pleach/NAME`: what `.cargo/config.toml` points at.
    pub(crate) fn local(&self, name: &str) -> PathBuf {
        self.root.join(".pleach").join(name)
    }

    /// Cargo's target folder.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
            Some(path) if path.is_absolute() => path,
            Some(path) => self.root.join(path),
            None => self.root.join("target"),
        }
    }

    /// A path as people read it: relative to the repository where it is inside.
    pub(crate) fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}
