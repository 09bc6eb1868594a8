//! Free space, asked before a long download instead of found out in the middle of it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::ui;

/// An error unless `folder`'s file system has `needed` bytes free.
pub(crate) fn require(folder: &Path, needed: u64) -> Result<()> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .with_context(|| format!("cannot read the free space of {}", folder.display()))?;
    check(folder, needed, stat.blocks_available() * stat.fragment_size())
}

fn check(folder: &Path, needed: u64, free: u64) -> Result<()> {
    if free < needed {
        bail!(
            "not enough disk space in {}: {} needed, {} free; make room, or set XDG_CACHE_HOME to a folder on a larger disk",
            folder.display(),
            ui::mb(needed),
            ui::mb(free)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_names_both_numbers() {
        let error = check(Path::new("cache"), 1_600_000_000, 300_000_000).unwrap_err().to_string();
        assert!(error.contains("1.6 GB needed") && error.contains("300 MB free"), "{error}");
        check(Path::new("cache"), 5, 5).unwrap();
    }

    #[test]
    fn a_real_folder_has_some_space() {
        require(&std::env::temp_dir(), 1).unwrap();
        require(&std::env::temp_dir(), u64::MAX).unwrap_err();
    }
}
