//! The mutations, from `mutations.toml`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::trial::Watch;
use crate::suites::{TORCH, TORCH_FREE};

const TEXT: &str = include_str!("mutations.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutation: Vec<Mutation>,
}

/// A deliberate mistake, and the test that must notice it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutation {
    /// For the command line.
    pub(super) name: String,
    /// The rule that it breaks.
    pub(super) invariant: String,
    /// What the mutated program does.
    pub(super) what: String,
    /// The changes, each at a place of its own.
    pub(super) edits: Vec<Edit>,
    /// The test.
    pub(super) watch: Watch,
}

/// A text that occurs exactly once in a file, and what stands there instead.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    pub(super) file: String,
    pub(super) find: String,
    pub(super) replace: String,
}

/// The mutations of these names, or all, in the order of packages.
pub(super) fn chosen(names: &[String]) -> Result<Vec<Mutation>> {
    let mut all = parse(TEXT)?;
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|mutation| mutation.name != **name)) {
        let known: Vec<_> = all.iter().map(|mutation| mutation.name.as_str()).collect();
        bail!("there is no mutation `{unknown}`; there are {}", known.join(", "));
    }
    all.retain(|mutation| names.is_empty() || names.contains(&mutation.name));
    Ok(all)
}

fn parse(text: &str) -> Result<Vec<Mutation>> {
    let mut all = toml::from_str::<List>(text).context("mutations.toml")?.mutation;
    let mut names = BTreeSet::new();
    for mutation in &all {
        if !names.insert(mutation.name.clone()) {
            bail!("mutations.toml: two mutations are called `{}`", mutation.name);
        }
        if mutation.edits.is_empty() || rank(mutation).is_none() {
            bail!("mutations.toml: `{}` changes nothing, or its package is in no suite", mutation.name);
        }
    }
    all.sort_by_key(|mutation| (rank(mutation), mutation.watch.clone()));
    Ok(all)
}

/// Lower packages first: what stands above them is then built once.
fn rank(mutation: &Mutation) -> Option<usize> {
    TORCH_FREE.iter().chain(TORCH).position(|package| *package == mutation.watch.package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::edit;
    use crate::paths::Paths;

    #[test]
    fn every_mutation_finds_its_place_in_the_sources() {
        let root = Paths::find().unwrap().root;
        let all = chosen(&[]).unwrap();
        assert!(all.len() >= 8, "{}", all.len());
        for mutation in &all {
            edit::apply(&root, mutation).unwrap();
        }
    }

    #[test]
    fn packages_come_in_order_and_unknown_names_are_refused() {
        let all = chosen(&[]).unwrap();
        assert!(all.is_sorted_by_key(rank));
        assert!(chosen(&["no-such".to_owned()]).unwrap_err().to_string().contains("there is no mutation `no-such`"));
        assert_eq!(chosen(&[all[0].name.clone()]).unwrap().len(), 1);
    }
}
