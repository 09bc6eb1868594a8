//! A small disk that can be full.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const FILLER: &str = "filler";

/// A mounted tmpfs; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) name: String,
    at: PathBuf,
}

impl Disk {
    /// Mounts one of so many megabytes.
    pub(crate) fn mount(name: &str, at: &Path, megabytes: u32) -> Result<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(at)
            .status()
            .context("cannot run `mount`")?;
        ensure!(status.success(), "cannot mount a tmpfs at {}", at.display());
        Ok(Self { name: name.to_owned(), at: at.to_owned() })
    }

    /// Leaves not a byte.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut file = File::create(self.at.join(FILLER))?;
        let block = vec![1_u8; 1 << 16];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
        Ok(())
    }

    pub(crate) fn free(&self) -> Result<()> {
        std::fs::remove_file(self.at.join(FILLER)).context("the filler is gone")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let Ok(disk) = Disk::mount("d", folder.path(), 1) else { return };
        let write = || std::fs::write(folder.path().join("x"), [0; 4096]);
        write().unwrap();
        std::fs::remove_file(folder.path().join("x")).unwrap();
        disk.fill().unwrap();
        assert!(write().is_err());
        disk.free().unwrap();
        write().unwrap();
    }
}
