//! Which crate of ours may use which: the code map of `docs/ARCHITECTURE.md`, held against `cargo metadata`.
//!
//! The page is the rule: an arrow that it does not list is an error, and so is one that it lists but nobody uses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::paths::Paths;

/// For tests only, these may be used by anyone.
const FOR_TESTS: &[&str] = &["base", "proto", "spec", "store", "testkit"];

/// Packages that are tests as a whole, and what they may use besides: they drive built programs, and compare.
const TESTS: &[(&str, &[&str])] = &[("e2e", &[]), ("interop", &["nn", "methods"])];

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The workspace as cargo sees it, without other people's packages.
pub(crate) fn metadata(paths: &Paths) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(paths.root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("`cargo metadata` failed")
}

/// What is wrong, one line each.
pub(crate) fn check(paths: &Paths) -> Result<Vec<String>> {
    let path = paths.root.join("docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let metadata = metadata(paths)?;
    let mut findings = compare(&allowed(&text)?, &used(&metadata, DependencyKind::Normal));
    findings.extend(tests_only(&allowed(&text)?, &used(&metadata, DependencyKind::Development)));
    Ok(findings)
}

/// Rows `| ring | crate | what | uses |` of the code map.
fn allowed(text: &str) -> Result<Arrows> {
    let map = text.split_once("## Code map").context("docs/ARCHITECTURE.md has no heading `## Code map`")?.1;
    let rows = map.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    let mut arrows = Arrows::new();
    for row in rows {
        let cells: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [_, name, _, uses] = cells[..] else { bail!("docs/ARCHITECTURE.md: row `{row}` needs four cells") };
        let uses = uses.split(',').map(|name| name.trim().trim_matches('`').to_owned()).filter(|name| !name.is_empty());
        arrows.insert(name.trim_matches('`').to_owned(), uses.collect());
    }
    Ok(arrows)
}

/// Which of our packages each of our packages names, by kind.
fn used(metadata: &Metadata, kind: DependencyKind) -> Arrows {
    let short = |name: &str| name.strip_prefix("pleach-").unwrap_or(name).to_owned();
    let packages = metadata.workspace_packages();
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    packages
        .iter()
        .map(|package| {
            let ours = package.dependencies.iter().filter(|dep| dep.kind == kind && names.contains(dep.name.as_str()));
            (short(&package.name), ours.map(|dep| short(&dep.name)).collect())
        })
        .collect()
}

fn compare(allowed: &Arrows, used: &Arrows) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, uses) in used {
        let for_tests = of_tests(name);
        let tests = for_tests.is_some();
        let Some(listed) = allowed.get(name).or(for_tests.as_ref()) else {
            findings.push(format!("docs/ARCHITECTURE.md: the code map has no row for `{name}`"));
            continue;
        };
        findings.extend(uses.difference(listed).map(|other| {
            format!("arrow {name} -> {other}: not in the code map of docs/ARCHITECTURE.md; turn it round, or argue for it there")
        }));
        if !tests {
            findings.extend(listed.difference(uses).map(|other| {
                format!("arrow {name} -> {other}: in the code map of docs/ARCHITECTURE.md, but {name}/Cargo.toml does not use it")
            }));
        }
    }
    let gone = allowed.keys().filter(|name| !used.contains_key(*name));
    findings.extend(
        gone.map(|name| format!("docs/ARCHITECTURE.md: the code map has a row for `{name}`, which is no package")),
    );
    findings
}

/// What a package that is tests as a whole may use.
fn of_tests(name: &str) -> Option<BTreeSet<String>> {
    let (_, more) = TESTS.iter().find(|(tests, _)| *tests == name)?;
    Some(FOR_TESTS.iter().chain(*more).map(|name| (*name).to_owned()).collect())
}

fn tests_only(allowed: &Arrows, used: &Arrows) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, uses) in used {
        let listed = allowed.get(name).cloned().or_else(|| of_tests(name)).unwrap_or_default();
        let fine = |other: &str| listed.contains(other) || FOR_TESTS.contains(&other);
        findings.extend(uses.iter().filter(|other| !fine(other)).map(|other| {
            format!(
                "arrow {name} -> {other} for tests: allowed are what {name} itself uses, and {}",
                FOR_TESTS.join(", ")
            )
        }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "## Code map\n\n| ring | crate | what | uses |\n|---|---|---|---|\n\
                        | 0 | `base` | x | |\n| 1 | `store` | x | base |\n| 2 | `train` | x | base, `store` |\n\nmore\n";

    fn arrows(list: &[(&str, &[&str])]) -> Arrows {
        list.iter().map(|(a, b)| ((*a).to_owned(), b.iter().map(|b| (*b).to_owned()).collect())).collect()
    }

    #[test]
    fn a_wrong_arrow_a_stale_arrow_and_an_unknown_crate_are_found() {
        let page = allowed(PAGE).unwrap();
        let good = arrows(&[("base", &[]), ("store", &["base"]), ("train", &["base", "store"]), ("e2e", &["testkit"])]);
        assert_eq!(compare(&page, &good), Vec::<String>::new());

        let mut up = good.clone();
        up.insert("store".into(), ["base".to_owned(), "train".to_owned()].into());
        assert!(compare(&page, &up)[0].starts_with("arrow store -> train: not in the code map"));
        let mut stale = good.clone();
        stale.insert("train".into(), ["base".to_owned()].into());
        assert!(compare(&page, &stale)[0].contains("does not use it"));
        let mut new = good.clone();
        new.insert("fresh".into(), BTreeSet::new());
        assert!(compare(&page, &new)[0].contains("no row for `fresh`"));
        let mut gone = good;
        gone.remove("store");
        assert!(compare(&page, &gone).iter().any(|line| line.contains("no package")));
    }

    #[test]
    fn tests_may_use_the_test_kit_but_not_the_trainer() {
        let page = allowed(PAGE).unwrap();
        assert!(tests_only(&page, &arrows(&[("store", &["testkit", "base"])])).is_empty());
        assert_eq!(tests_only(&page, &arrows(&[("store", &["train"])])).len(), 1);
    }

    #[test]
    fn the_arrows_of_this_workspace_point_the_right_way() {
        let findings = check(&Paths::find().unwrap()).unwrap();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
