//! The suites of `cargo xtask test`: one a package, and the table of `docs/ci.md` that says what each should take.
//!
//! Packages that link libtorch are built by another cargo call than the rest: in one call features would unify, and `pleach`
//! would link libtorch too.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;

/// Packages without libtorch, in the order in which they run.
pub(crate) const TORCH_FREE: &[&str] = &[
    "xtask",
    "pleach-base",
    "pleach-proto",
    "pleach-spec",
    "pleach-sched",
    "pleach-store",
    "pleach-data",
    "pleach-testkit",
    "pleach-coordinator",
    "pleach-cli",
    "pleach-e2e",
    "pleach-chaos",
    "pleach-bench",
];

/// Packages that link libtorch.
pub(crate) const TORCH: &[&str] =
    &["pleach-nn", "pleach-methods", "pleach-comm", "pleach-train", "pleach-papers", "pleach-worker", "pleach-interop"];

/// Features that the second group is built with.
pub(crate) const TORCH_FEATURES: &str = "pleach-nn/torch,pleach-methods/torch";

/// The suite of all documentation examples.
pub(crate) const DOC: &str = "doc";

/// The suite that, besides its tests, is a run of the fault harness.
pub(crate) const RUN: &str = "chaos";

/// The suite of a package: its name without the prefix.
pub(crate) fn suite_of(package: &str) -> &str {
    package.strip_prefix("pleach-").unwrap_or(package)
}

/// All suites in the order in which they run.
pub(crate) fn all() -> Vec<&'static str> {
    let (last, first): (Vec<&str>, Vec<&str>) = TORCH_FREE
        .iter()
        .partition(|package| ["pleach-e2e", "pleach-interop", "pleach-chaos", "pleach-bench"].contains(package));
    first
        .into_iter()
        .chain(TORCH.iter().copied())
        .map(suite_of)
        .chain([DOC])
        .chain(last.into_iter().map(suite_of))
        .collect()
}

/// Expected seconds by suite, from the table in `docs/ci.md`.
pub(crate) fn expected(paths: &Paths) -> Result<BTreeMap<String, f64>> {
    let path = paths.root.join("docs/ci.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text)
}

/// Rows `| suite | packages | seconds | what |` after the heading `## Suites`.
fn parse(text: &str) -> Result<BTreeMap<String, f64>> {
    let table = text.split_once("## Suites").context("docs/ci.md has no heading `## Suites`")?.1;
    let mut rows = BTreeMap::new();
    for line in table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2)
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [suite, _, seconds, ..] = cells[..] else { bail!("docs/ci.md: row `{line}` has too few cells") };
        let seconds = seconds.parse().with_context(|| format!("docs/ci.md: `{seconds}` is no number of seconds"))?;
        if rows.insert(suite.to_owned(), seconds).is_some() {
            bail!("docs/ci.md: two rows for the suite `{suite}`");
        }
    }
    compare(&rows)?;
    Ok(rows)
}

fn compare(rows: &BTreeMap<String, f64>) -> Result<()> {
    let suites = all();
    for suite in &suites {
        if !rows.contains_key(*suite) {
            bail!("docs/ci.md has no row for the suite `{suite}`");
        }
    }
    match rows.keys().find(|row| !suites.contains(&row.as_str())) {
        Some(row) => bail!("docs/ci.md has a row for `{row}`, which is no suite"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(skip: &str, more: &str) -> String {
        let rows: String = all().iter().filter(|s| **s != skip).map(|s| format!("| `{s}` | x | 1.5 | y |\n")).collect();
        format!(
            "# CI\n## Suites\n\n| suite | packages | seconds | what |\n|---|---|---|---|\n{rows}{more}\nafter\n| no | row | here |\n"
        )
    }

    #[test]
    fn a_whole_table_is_read() {
        let rows = parse(&table("", "")).unwrap();
        assert_eq!(rows.len(), all().len());
        assert_eq!(rows["base"], 1.5);
    }

    #[test]
    fn a_suite_without_a_row_and_a_row_without_a_suite_are_errors() {
        assert_eq!(parse(&table("comm", "")).unwrap_err().to_string(), "docs/ci.md has no row for the suite `comm`");
        let error = parse(&table("", "| `gone` | x | 1 | y |\n")).unwrap_err().to_string();
        assert_eq!(error, "docs/ci.md has a row for `gone`, which is no suite");
        assert!(parse(&table("", "| `base` | x | 1 | y |\n")).unwrap_err().to_string().contains("two rows"));
    }

    #[test]
    fn the_real_table_fits() {
        expected(&Paths::find().unwrap()).unwrap();
    }

    #[test]
    fn every_package_of_the_workspace_is_in_a_suite() {
        let metadata = crate::arrows::metadata(&Paths::find().unwrap()).unwrap();
        for package in metadata.workspace_packages() {
            let name = package.name.as_str();
            assert!(TORCH_FREE.contains(&name) || TORCH.contains(&name), "{name} is in no suite");
        }
    }
}
