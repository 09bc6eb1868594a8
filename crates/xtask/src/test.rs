//! `cargo xtask test`: builds everything as it is shipped, then runs every suite and shows what each took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use crate::paths::Paths;
use crate::suites::{self, DOC, RUN, TORCH, TORCH_FEATURES, TORCH_FREE, suite_of};
use crate::{chaos, cmd, interop, setup, torch_free, ui};

/// `test` on the command line.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// Only these suites, such as `store` or `doc`; all when absent
    suites: Vec<String>,
}

/// A test binary of a package.
struct Binary {
    suite: String,
    folder: PathBuf,
    program: PathBuf,
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    let expected = suites::expected(paths)?;
    let all = suites::all();
    if let Some(unknown) = args.suites.iter().find(|suite| !all.contains(&suite.as_str())) {
        bail!("there is no suite `{unknown}`; there are {}", all.join(", "));
    }
    let wanted = |suite: &str| args.suites.is_empty() || args.suites.iter().any(|name| name == suite);

    let start = Instant::now();
    build_programs(paths)?;
    let mut binaries = build_tests(paths, TORCH_FREE, None)?;
    binaries.extend(build_tests(paths, TORCH, Some(TORCH_FEATURES))?);
    torch_free::check(paths)?;
    let env = environment(paths, wanted("interop"))?;
    ui::say("built", format!("in {:.0} s", start.elapsed().as_secs_f64()));

    let mut rows = Vec::new();
    for suite in all.into_iter().filter(|suite| wanted(suite)) {
        let start = Instant::now();
        let ok = if suite == DOC {
            doc_tests(paths, &env)?
        } else if suite == RUN {
            let binaries = binaries.iter().filter(|binary| binary.suite == suite);
            run_suite(suite, binaries, &env)? & chaos_run(paths)
        } else {
            run_suite(suite, binaries.iter().filter(|binary| binary.suite == suite), &env)?
        };
        rows.push(Row { suite, ok, seconds: start.elapsed().as_secs_f64() });
    }
    report(&rows, &expected)
}

/// The programs as they are shipped, each by its own call.
pub(crate) fn build_programs(paths: &Paths) -> Result<()> {
    for package in ["pleach-testkit", "pleach-chaos", "pleach-worker", "pleach-cli"] {
        cmd::run(cmd::cargo(paths).args(["build", "--quiet", "--bins", "-p", package]))?;
    }
    Ok(())
}

/// Builds the tests of a group and returns their binaries, in the group's order.
fn build_tests(paths: &Paths, group: &[&str], features: Option<&str>) -> Result<Vec<Binary>> {
    let mut command = cmd::cargo(paths);
    command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
    command.args(packages(group));
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    let shown = cmd::show(&command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let stdout = child.stdout.take().context("cargo's output is piped")?;
    let mut found = Vec::new();
    for message in Message::parse_stream(std::io::BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")?
            && let Some(program) = artifact.executable.as_ref().filter(|_| artifact.profile.test)
        {
            let folder = artifact.manifest_path.parent().context("a manifest has a folder")?;
            let package = package_name(folder.as_std_path())?;
            found.push(Binary { suite: suite_of(&package).to_owned(), folder: folder.into(), program: program.into() });
        }
    }
    if !child.wait()?.success() {
        bail!("`{shown}` failed");
    }
    found.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(found)
}

/// `-p NAME` for each.
pub(crate) fn packages(group: &[&str]) -> Vec<String> {
    group.iter().flat_map(|package| ["-p".to_owned(), (*package).to_owned()]).collect()
}

fn package_name(folder: &Path) -> Result<String> {
    let text = std::fs::read_to_string(folder.join("Cargo.toml"))?;
    let manifest: toml::Table = text.parse().with_context(|| format!("{}/Cargo.toml", folder.display()))?;
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
    Ok(name.with_context(|| format!("{}/Cargo.toml names no package", folder.display()))?.to_owned())
}

/// What tests with real processes and other people's programs need to know.
fn environment(paths: &Paths, interop: bool) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut env = vec![("PLEACH_MINILM", setup::minilm(paths)?)];
    if interop {
        env.push(("PLEACH_INTEROP_PYTHON", interop::python(paths)?));
        env.push(("PLEACH_ADAPTERS_PYTHON", interop::adapters_python(paths)?));
    }
    Ok(env)
}

fn run_suite<'a>(
    suite: &str,
    binaries: impl Iterator<Item = &'a Binary>,
    env: &[(&'static str, PathBuf)],
) -> Result<bool> {
    let mut ok = true;
    for binary in binaries {
        let name = binary.program.file_stem().unwrap_or_default().to_string_lossy();
        ui::say("suite", format!("{suite}: {}", name.rsplit_once('-').map_or(&*name, |(name, _)| name)));
        let status = Command::new(&binary.program)
            .current_dir(&binary.folder)
            .env("CARGO_MANIFEST_DIR", &binary.folder)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .status()
            .with_context(|| format!("cannot run {}", binary.program.display()))?;
        ok &= status.success();
    }
    Ok(ok)
}

/// The short run of the harness; says what went wrong, so that the other suites still have their turn.
fn chaos_run(paths: &Paths) -> bool {
    ui::say("suite", format!("{RUN}: a run of two minutes"));
    let output = paths.target().join("chaos.json");
    let output = output.display().to_string();
    let run = chaos::with_programs(paths, &[chaos::SUITE, &["--output", &output]].concat());
    run.inspect_err(|error| ui::say("failed", format!("{error:#}"))).is_ok()
}

fn doc_tests(paths: &Paths, env: &[(&'static str, PathBuf)]) -> Result<bool> {
    let mut ok = true;
    // The very packages of the other builds, so that nothing is compiled once more.
    for (group, features) in [(TORCH_FREE, None), (TORCH, Some(TORCH_FEATURES))] {
        ui::say("suite", format!("{DOC}: {} packages", group.len()));
        let mut command = cmd::cargo(paths);
        command.args(["test", "--quiet", "--doc"]).args(packages(group));
        command.args(features.into_iter().flat_map(|features| ["--features", features]));
        command.envs(env.iter().map(|(name, value)| (name, value)));
        ok &= command.status().context("cannot run cargo")?.success();
    }
    Ok(ok)
}

struct Row {
    suite: &'static str,
    ok: bool,
    seconds: f64,
}

fn report(rows: &[Row], expected: &std::collections::BTreeMap<String, f64>) -> Result<()> {
    println!("\n{:<12} {:>8} {:>9}", "suite", "seconds", "expected");
    for row in rows {
        let expected = expected.get(row.suite).copied().unwrap_or_default();
        let note = match (row.ok, row.seconds > 3.0 * expected + 2.0) {
            (false, _) => "FAILED",
            (true, true) => "slower than docs/ci.md says",
            (true, false) => "",
        };
        println!("{:<12} {:>8.1} {:>9.1} {note}", row.suite, row.seconds, expected);
    }
    let total: f64 = rows.iter().map(|row| row.seconds).sum();
    let failed: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.suite).collect();
    println!("{:<12} {total:>8.1}", "total");
    if !failed.is_empty() {
        bail!("{} of {} suites failed: {}", failed.len(), rows.len(), failed.join(", "));
    }
    Ok(())
}
