//! `control`: one coordinator with thousands of simulated workers.

use std::process::Command;

use anyhow::Result;

use crate::paths::Paths;
use crate::{cmd, ui};

/// Where the numbers are kept when no other file is named.
const KEPT: &str = "docs/bench/control.json";

/// Builds both programs as they are released, and measures.
pub(super) fn run(paths: &Paths, rest: &[String]) -> Result<()> {
    ui::say("building", "pleach and pleach-bench, optimised");
    // Each by itself: features of the one are not the other's.
    for package in ["pleach-cli", "pleach-bench"] {
        cmd::run(cmd::cargo(paths).args(["build", "--quiet", "--release", "-p", package]))?;
    }
    let mut measure = Command::new(paths.target().join("release/pleach-bench"));
    if !rest.iter().any(|word| word == "-o" || word.starts_with("--output")) {
        measure.arg("--output").arg(paths.root.join(KEPT));
    }
    cmd::run(measure.args(rest))
}
