//! `cargo xtask lint` and `fix`: formatting, clippy, documentation, and the rules of this repository.

use anyhow::{Result, bail};

use crate::paths::Paths;
use crate::suites::{TORCH, TORCH_FEATURES, TORCH_FREE};
use crate::test::packages;
use crate::{arrows, cmd, generate, suites, tidy, torch_free, ui};

/// Everything; the first kind of finding ends it, except that all rules of the repository are reported together.
pub(crate) fn run(paths: &Paths) -> Result<()> {
    ui::say("tidy", "files, links, codes, arrows");
    rules(paths)?;
    ui::say("fmt", "");
    cmd::run(cmd::cargo(paths).args(["fmt", "--all", "--check"]))?;
    for (group, features) in groups() {
        ui::say("clippy", group.join(" "));
        let mut clippy = cmd::cargo(paths);
        clippy.args(["clippy", "--quiet", "--all-targets"]).args(packages(group)).args(features);
        cmd::run(clippy.args(["--", "-D", "warnings"]))?;
        ui::say("doc", group.join(" "));
        let mut doc = cmd::cargo(paths);
        doc.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--quiet", "--no-deps"]);
        cmd::run(doc.args(packages(group)).args(features))?;
    }
    cmd::run(cmd::cargo(paths).args(["build", "--quiet", "-p", "pleach-cli"]))?;
    torch_free::check(paths)?;
    generate::check(paths)?;
    ui::say("lint", "clean");
    Ok(())
}

fn rules(paths: &Paths) -> Result<()> {
    let mut findings = tidy::check(paths)?;
    findings.extend(arrows::check(paths)?);
    suites::expected(paths)?;
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(())
}

fn groups() -> [(&'static [&'static str], &'static [&'static str]); 2] {
    [(TORCH_FREE, &[]), (TORCH, &["--features", TORCH_FEATURES])]
}

/// Rewrites what can be rewritten.
pub(crate) fn fix(paths: &Paths) -> Result<()> {
    cmd::run(cmd::cargo(paths).args(["fmt", "--all"]))?;
    for (group, features) in groups() {
        let mut clippy = cmd::cargo(paths);
        clippy.args(["clippy", "--fix", "--allow-dirty", "--allow-staged", "--all-targets"]);
        cmd::run(clippy.args(packages(group)).args(features))?;
    }
    cmd::run(cmd::cargo(paths).args(["fmt", "--all"]))
}
