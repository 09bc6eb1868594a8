//! `PROTOC` for the build scripts that call it: protox, which takes protoc's arguments and is built from source here.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::pins::PROTOX_VERSION;
use super::{Lock, link};
use crate::paths::Paths;
use crate::{cmd, ui};

/// Finds protox in the cache or installs it, and links it.
pub(crate) fn ensure(paths: &Paths) -> Result<PathBuf> {
    let home = paths.cache.join(format!("protox-{PROTOX_VERSION}"));
    let binary = home.join("bin/protox");
    if !binary.is_file() {
        let _lock = Lock::take(&paths.cache, "setup")?;
        if !binary.is_file() {
            install(paths, &home)?;
        }
    }
    link::point(&paths.local("bin/protox"), &binary)?;
    Ok(binary)
}

fn install(paths: &Paths, home: &std::path::Path) -> Result<()> {
    ui::say("building", format!("protox {PROTOX_VERSION}, once for this user"));
    let staging = tempfile::Builder::new().prefix("making-").tempdir_in(&paths.cache)?;
    let mut cargo = cmd::cargo(paths);
    // Outside the workspace: its configuration and lock file are not protox's.
    cargo.current_dir(staging.path()).env_remove("CARGO_TARGET_DIR");
    cargo.args(["install", "protox", "--version", PROTOX_VERSION, "--features", "bin", "--locked", "--quiet"]);
    cargo.arg("--root").arg(staging.path().join("root")).arg("--target-dir").arg(staging.path().join("build"));
    cmd::run(&mut cargo).context("cannot build protox; a Rust tool chain and the crate registry are needed once")?;
    fs::remove_dir_all(staging.path().join("build")).ok();
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("cannot remove the unfinished {}", home.display()))?;
    }
    fs::rename(staging.path().join("root"), home).with_context(|| format!("cannot create {}", home.display()))
}
