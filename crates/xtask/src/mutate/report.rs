//! What was caught: a table for people, JSON for everybody else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::list::Mutation;
use super::trial::{Outcome, Trial};

/// One mutation and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: String,
    invariant: String,
    what: String,
    test: String,
    result: Verdict,
    failed: Vec<String>,
    build_s: f64,
    run_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Caught,
    /// The test hung, which is noticed too.
    CaughtByHanging,
    Survived,
    /// The test fails without the mutation as well: it proves nothing.
    TestIsBroken,
}

impl Row {
    /// What a trial with the mutation says.
    pub(super) fn of(mutation: &Mutation, trial: Trial) -> Self {
        let result = match trial.outcome {
            Outcome::Passed => Verdict::Survived,
            Outcome::Failed => Verdict::Caught,
            Outcome::Hung => Verdict::CaughtByHanging,
        };
        let (build_s, run_s) = (trial.build.as_secs_f64(), trial.run.as_secs_f64());
        Self { result, failed: trial.failed, build_s, run_s, ..Self::unsound(mutation) }
    }

    /// A mutation that was not tried, since its test fails anyway.
    pub(super) fn unsound(mutation: &Mutation) -> Self {
        Self {
            name: mutation.name.clone(),
            invariant: mutation.invariant.clone(),
            what: mutation.what.clone(),
            test: mutation.watch.shown(),
            result: Verdict::TestIsBroken,
            failed: Vec::new(),
            build_s: 0.0,
            run_s: 0.0,
        }
    }

    pub(super) fn is_caught(&self) -> bool {
        matches!(self.result, Verdict::Caught | Verdict::CaughtByHanging)
    }
}

/// The mutations without trying them.
pub(super) fn listed(mutations: &[Mutation]) -> String {
    let mut text = String::new();
    for mutation in mutations {
        let _ = writeln!(text, "{:<28} {:<24} {}", mutation.name, mutation.invariant, mutation.what);
    }
    text
}

/// A line a mutation.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!("\n{:<28} {:<24} {:<9} {:>7}  {}\n", "mutation", "invariant", "result", "seconds", "test");
    for row in rows {
        let result = match row.result {
            Verdict::Caught => "caught",
            Verdict::CaughtByHanging => "hung",
            Verdict::Survived => "SURVIVED",
            Verdict::TestIsBroken => "NO TEST",
        };
        let seconds = row.build_s + row.run_s;
        let _ = writeln!(text, "{:<28} {:<24} {result:<9} {seconds:>7.1}  {}", row.name, row.invariant, row.test);
    }
    text
}

/// Writes the rows as JSON.
pub(super) fn write(file: &Path, rows: &[Row]) -> Result<()> {
    let caught = rows.iter().filter(|row| row.is_caught()).count();
    let report = serde_json::json!({"mutations": rows.len(), "caught": caught, "rows": rows});
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(file, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", file.display()))
}
