//! Building and running the test that watches a mutation.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::scratch::Scratch;
use crate::suites::TORCH_FEATURES;

/// The test that must fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watch {
    /// The package whose test it is.
    pub(super) package: String,
    /// The test target, such as `it`; the tests inside the library when absent.
    #[serde(default)]
    pub(super) target: Option<String>,
    /// Filters, as the test binary takes them.
    #[serde(default)]
    pub(super) tests: Vec<String>,
    /// Packages whose programs the test runs.
    #[serde(default)]
    pub(super) programs: Vec<String>,
    /// Seconds after which a run counts as one that hangs.
    #[serde(default)]
    pub(super) limit: Option<u64>,
}

impl Watch {
    /// For people.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.package, self.tests.join(" "))
    }

    fn test(&self, scratch: &Scratch, more: &[&str]) -> Command {
        let mut command = scratch.cargo();
        command.args(["test", "--quiet", "-p", &self.package]);
        match &self.target {
            Some(target) => command.args(["--test", target]),
            None => command.arg("--lib"),
        };
        command.args(features(&self.package)).args(more);
        command
    }
}

/// The features that `cargo xtask test` builds a package with, so that its dependencies are the ones that are there.
fn features(package: &str) -> Vec<String> {
    let own = TORCH_FEATURES.split(',').filter(|feature| feature.split('/').next() == Some(package));
    own.flat_map(|feature| ["--features".to_owned(), feature.to_owned()]).collect()
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// It did not end in time, which is a way of failing.
    Hung,
}

/// A trial.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) outcome: Outcome,
    pub(super) build: Duration,
    pub(super) run: Duration,
    /// The tests that failed.
    pub(super) failed: Vec<String>,
}

const LIMIT: u64 = 300;

/// Builds the watch as the copy now is, and runs it.
///
/// # Errors
/// When it does not compile: a mutation that the compiler refuses proves nothing. When no test has one of the names.
pub(super) fn run(scratch: &Scratch, watch: &Watch) -> Result<Trial> {
    let start = Instant::now();
    for package in &watch.programs {
        built(scratch.cargo().args(["build", "--quiet", "--bins", "-p", package]))?;
    }
    built(&mut watch.test(scratch, &["--no-run"]))?;
    let build = start.elapsed();
    let mut filters: Vec<&str> = vec!["--"];
    filters.extend(watch.tests.iter().map(String::as_str));
    let start = Instant::now();
    let mut command = watch.test(scratch, &filters);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn();
    let (ended, text) = wait(child.context("cannot run cargo")?, Duration::from_secs(watch.limit.unwrap_or(LIMIT)))?;
    let outcome = match ended {
        None => Outcome::Hung,
        Some(true) if ran(&text) == 0 => bail!("{}: no such test", watch.shown()),
        Some(true) => Outcome::Passed,
        Some(false) => Outcome::Failed,
    };
    Ok(Trial { outcome, build, run: start.elapsed(), failed: failed(&text) })
}

fn built(command: &mut Command) -> Result<()> {
    let out = command.output().context("cannot run cargo")?;
    if !out.status.success() {
        bail!("{} does not compile:\n{}", crate::cmd::show(command), String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

/// Whether it succeeded, if it ended in time, and what it printed. Everything that it started ends with it.
fn wait(mut child: Child, limit: Duration) -> Result<(Option<bool>, String)> {
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let mut out = child.stdout.take().context("the output is piped")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut out, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let start = Instant::now();
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Some(status.success()),
            None if start.elapsed() > limit => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let _ = killpg(group, Signal::SIGKILL);
    if ended.is_none() {
        child.wait()?;
    }
    let text = reader.join().unwrap_or_default();
    Ok((ended, text))
}

/// How many tests passed.
fn ran(text: &str) -> u64 {
    let results = text.lines().filter_map(|line| line.split("test result: ok. ").nth(1));
    results.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// The names under the last `failures:` of each test binary.
fn failed(text: &str) -> Vec<String> {
    let Some((_, list)) = text.rsplit_once("\nfailures:\n") else { return Vec::new() };
    let names = list.lines().map_while(|line| line.strip_prefix("    "));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_binary_prints_is_understood() {
        let ok = "running 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored\n";
        assert_eq!(ran(ok), 3);
        assert!(failed(ok).is_empty());
        let bad =
            "failures:\n\n---- a::b stdout ----\nx\n\nfailures:\n    a::b\n    a::c\n\ntest result: FAILED. 1 passed\n";
        assert_eq!((ran(bad), failed(bad)), (0, vec!["a::b".to_owned(), "a::c".to_owned()]));
    }

    #[test]
    fn a_run_that_hangs_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo begun; sleep 600"]).stdout(Stdio::piped()).process_group(0);
        let (ended, text) = wait(command.spawn().unwrap(), Duration::from_millis(300)).unwrap();
        assert_eq!((ended, text.as_str()), (None, "begun\n"));
    }

    #[test]
    fn packages_are_built_with_their_features() {
        assert_eq!(features("pleach-nn"), ["--features", "pleach-nn/torch"]);
        assert!(features("pleach-train").is_empty());
    }
}
