//! Crates as pairs of texts: what the author says in one line, and what the README says at length.
//!
//! Honest pairs: sentences of the README that repeat the description are left out, so that finding the right README takes
//! more than finding the same words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use regex::Regex;

use super::markdown;
use crate::paths::Paths;

/// Words after which a passage is long enough, and at which it is cut.
const ENOUGH: usize = 60;
const MOST: usize = 80;
/// Words without which a passage or a description says too little.
const LEAST_PASSAGE: usize = 12;
const LEAST_QUERY: usize = 2;

/// One crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// Its description.
    pub(super) query: String,
    /// From its README.
    pub(super) passage: String,
    /// What it has in common with others: the repository it comes from, and its README as a whole.
    pub(super) kin: Vec<String>,
}

/// All crates of this workspace's lock file that have a description and a README, by name; of several versions the newest.
pub(super) fn read(paths: &Paths) -> Result<Vec<Entry>> {
    let metadata = MetadataCommand::new()
        .manifest_path(paths.root.join("Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .context("`cargo metadata` failed")?;
    let boilerplate = Regex::new(BOILERPLATE)?;
    let mut newest = BTreeMap::new();
    for package in metadata.packages.iter().filter(|package| package.source.is_some()) {
        let known = newest.entry(package.name.to_string()).or_insert(package);
        if package.version > known.version {
            *known = package;
        }
    }
    let mut entries = Vec::new();
    for (name, package) in newest {
        let (Some(description), Some(readme)) = (&package.description, package.readme()) else { continue };
        let Ok(bytes) = fs::read(&readme) else { continue };
        let readme = String::from_utf8_lossy(&bytes);
        let query = markdown::plain(description);
        let passage = passage(&readme, &query, &boilerplate);
        if passage.split(' ').count() >= LEAST_PASSAGE && words(&query).len() >= LEAST_QUERY {
            let repository = package.repository.as_deref().map(repository_root);
            let kin = repository.into_iter().chain([format!("readme {}", readme.trim())]).collect();
            entries.push(Entry { name, query, passage, kin });
        }
    }
    Ok(entries)
}

/// Sentences with these are about packaging, not about what the crate does.
const BOILERPLATE: &str = r"(?i)licen[cs]e|contribution|minimum supported rust|msrv|semver|rustc? \d|cargo\.toml|dual-licensed|docs\.rs|changelog|crates\.io|pull request|github";

/// A passage of the README that does not repeat `query`.
fn passage(readme: &str, query: &str, boilerplate: &Regex) -> String {
    let said = words(query);
    let mut passage: Vec<String> = Vec::new();
    for paragraph in markdown::paragraphs(readme) {
        for sentence in sentences(&paragraph) {
            let own = words(sentence);
            if own.len() < 3 || boilerplate.is_match(sentence) || repeats(&own, &said) {
                continue;
            }
            passage.extend(sentence.split(' ').map(str::to_owned));
            if passage.len() >= ENOUGH {
                passage.truncate(MOST);
                return passage.join(" ");
            }
        }
    }
    passage.join(" ")
}

/// Whether a sentence is mostly the description's words, or holds most of the description.
fn repeats(sentence: &BTreeSet<String>, said: &BTreeSet<String>) -> bool {
    let common = sentence.intersection(said).count();
    2 * common >= sentence.len() || (!said.is_empty() && 10 * common >= 6 * said.len())
}

fn sentences(paragraph: &str) -> Vec<&str> {
    paragraph
        .split_inclusive(". ")
        .flat_map(|part| part.split_inclusive(": "))
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .collect()
}

/// Words of more than two letters or digits that carry meaning, in lower case.
pub(super) fn words(text: &str) -> BTreeSet<String> {
    const COMMON: &[&str] = &[
        "the", "and", "for", "with", "from", "that", "this", "are", "not", "you", "your", "can", "any", "its", "into",
        "only", "when", "have", "has", "which", "will", "use", "used", "using", "rust", "crate", "library",
    ];
    text.to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() > 2 && !COMMON.contains(word))
        .map(str::to_owned)
        .collect()
}

/// `scheme://host/owner/name` of an address that may go deeper.
fn repository_root(url: &str) -> String {
    let url = url.trim_end_matches('/').trim_end_matches(".git").to_lowercase();
    url.splitn(6, '/').take(5).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_the_description_is_left_out() {
        let boilerplate = Regex::new(BOILERPLATE).unwrap();
        let readme = "# parse\n\nA fast JSON parser. It keeps the order of keys and reads numbers exactly. \
                      See docs.rs for more of the details here.\n\nFast parser, JSON!\n";
        let text = passage(readme, "A fast JSON parser", &boilerplate);
        assert_eq!(text, "It keeps the order of keys and reads numbers exactly.");
    }

    #[test]
    fn a_passage_has_enough_words_and_no_more_than_most() {
        let boilerplate = Regex::new(BOILERPLATE).unwrap();
        let sentence = "alpha beta gamma delta epsilon zeta eta theta iota kappa. ";
        assert_eq!(passage(&sentence.repeat(20), "other things", &boilerplate).split(' ').count(), ENOUGH);
        let long = format!("{} end. ", "alpha beta gamma delta ".repeat(40));
        assert_eq!(passage(&long, "other things", &boilerplate).split(' ').count(), MOST);
    }

    #[test]
    fn one_repository_is_one_whatever_the_address_says() {
        let one = repository_root("https://github.example/Owner/Name.git");
        assert_eq!(one, repository_root("https://github.example/owner/name/tree/main/sub"));
        assert_ne!(one, repository_root("https://github.example/owner/other"));
    }
}
