//! The proof that the control plane links no libtorch: in the dependency graph, and in the binary.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::{cmd, ui};

/// Packages that must work on a machine without libtorch.
const PACKAGES: &[&str] = &["pleach-cli", "pleach-coordinator", "xtask"];

/// Both proofs; `pleach` has been built by its own cargo call.
pub(crate) fn check(paths: &Paths) -> Result<()> {
    for package in PACKAGES {
        graph(paths, package)?;
    }
    binary(paths)?;
    ui::say("torch-free", format!("{}, and the binary `pleach`", PACKAGES.join(", ")));
    Ok(())
}

fn graph(paths: &Paths, package: &str) -> Result<()> {
    let mut command = cmd::cargo(paths);
    command.args(["tree", "--quiet", "--prefix", "none", "-e", "normal", "-p", package]);
    let out = cmd::output(&mut command)?;
    if !out.status.success() {
        bail!("`{}` failed: {}", cmd::show(&command), String::from_utf8_lossy(&out.stderr).trim());
    }
    match torch_line(&String::from_utf8_lossy(&out.stdout)) {
        Some(line) => bail!("{package} depends on `{line}`; `cargo tree -p {package} -e normal -i torch-sys` says how"),
        None => Ok(()),
    }
}

fn torch_line(tree: &str) -> Option<&str> {
    tree.lines().find(|line| ["torch-sys", "tch"].contains(&line.split(' ').next().unwrap_or_default()))
}

fn binary(paths: &Paths) -> Result<()> {
    let program = paths.target().join("debug/pleach");
    let out = cmd::output(Command::new("ldd").arg(&program)).context("ldd is part of the C library's tools")?;
    if !out.status.success() {
        bail!("`ldd {}` failed: {}", program.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    match torch_library(&String::from_utf8_lossy(&out.stdout)) {
        Some(library) => bail!("{} links {library}; was it built together with pleach-worker?", program.display()),
        None => Ok(()),
    }
}

fn torch_library(ldd: &str) -> Option<&str> {
    let names = ldd.lines().filter_map(|line| line.split_whitespace().next());
    names.into_iter().find(|name| ["libtorch", "libc10", "libcuda"].iter().any(|bad| name.starts_with(bad)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torch_is_found_where_it_is() {
        assert_eq!(torch_line("pleach-cli v0.1.0 (x)\ntch-like v1\ntorch-sys v0.24.0\n"), Some("torch-sys v0.24.0"));
        assert_eq!(torch_line("pleach-cli v0.1.0\nserde v1.0.0 (*)\n"), None);
        assert_eq!(
            torch_library("\tlibc.so.6 => /lib/libc.so.6\n\tlibtorch_cpu.so => not found\n"),
            Some("libtorch_cpu.so")
        );
        assert_eq!(torch_library("\tlibc.so.6 => /lib/libc.so.6\n"), None);
    }

    #[test]
    fn the_workspace_knows_a_package_that_is_not_torch_free() {
        // The same question about the worker must have the other answer, or the proof proves nothing.
        let error = graph(&Paths::find().unwrap(), "pleach-worker").unwrap_err().to_string();
        assert!(error.contains("pleach-worker depends on `t"), "{error}");
        graph(&Paths::find().unwrap(), "xtask").unwrap();
    }
}
