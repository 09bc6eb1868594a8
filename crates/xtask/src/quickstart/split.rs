//! Training and held-out crates: split by family, so that nothing of a held-out crate is trained on in disguise.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::corpus::{Entry, words};

/// Families larger than this train: one of them would make up too much of the held-out set.
const LARGEST_HELD_OUT: usize = 4;

/// The two parts.
#[derive(Debug)]
pub(super) struct Split {
    /// Trained on.
    pub(super) train: Vec<Entry>,
    /// Only measured with.
    pub(super) held_out: Vec<Entry>,
    /// How many families there are.
    pub(super) families: usize,
}

/// Leaves out copies, groups into families, and holds out `percent` of the crates, whole families at a time, in an order
/// that depends on names alone.
pub(super) fn split(entries: Vec<Entry>, percent: usize) -> Split {
    let entries = without_copies(entries);
    let wanted = entries.len() * percent / 100;
    let mut families = families(&entries);
    families.sort_by_key(|family| Sha256::digest(&entries[family[0]].name));
    let mut split = Split { train: Vec::new(), held_out: Vec::new(), families: families.len() };
    for family in families {
        let hold = family.len() <= LARGEST_HELD_OUT && split.held_out.len() + family.len() <= wanted;
        let side = if hold { &mut split.held_out } else { &mut split.train };
        side.extend(family.into_iter().map(|index| entries[index].clone()));
    }
    split
}

/// The first of each set of crates with the same description or the same beginning of the passage.
fn without_copies(entries: Vec<Entry>) -> Vec<Entry> {
    let mut seen = BTreeSet::new();
    let beginning = |text: &str| text.split(' ').take(30).collect::<Vec<_>>().join(" ");
    entries
        .into_iter()
        .filter(|entry| {
            // Both are entered, whichever is new.
            let query = seen.insert(format!("q {}", entry.query.to_lowercase()));
            let passage = seen.insert(format!("p {}", beginning(&entry.passage)));
            query && passage
        })
        .collect()
}

/// Crates that belong together: of one repository, with one README, or with much the same passage.
fn families(entries: &[Entry]) -> Vec<Vec<usize>> {
    let mut parents: Vec<usize> = (0..entries.len()).collect();
    let mut first = BTreeMap::new();
    let passages: Vec<BTreeSet<String>> = entries.iter().map(|entry| words(&entry.passage)).collect();
    for (index, entry) in entries.iter().enumerate() {
        for kin in &entry.kin {
            join(&mut parents, *first.entry(kin).or_insert(index), index);
        }
        for other in 0..index {
            let common = passages[index].intersection(&passages[other]).count();
            if 10 * common > 6 * passages[index].len().min(passages[other].len()) {
                join(&mut parents, other, index);
            }
        }
    }
    let mut families: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in 0..entries.len() {
        families.entry(root(&parents, index)).or_default().push(index);
    }
    families.into_values().collect()
}

fn root(parents: &[usize], mut index: usize) -> usize {
    while parents[index] != index {
        index = parents[index];
    }
    index
}

fn join(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (root(parents, a), root(parents, b));
    parents[a.max(b)] = a.min(b);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, passage: &str, kin: &str) -> Entry {
        Entry { name: name.into(), query: format!("what {name} does"), passage: passage.into(), kin: vec![kin.into()] }
    }

    fn unlike(index: usize) -> String {
        (0..20).map(|word| format!("word{index}x{word}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn no_family_is_on_both_sides() {
        let mut entries: Vec<Entry> =
            (0..40).map(|i| entry(&format!("c{i:02}"), &unlike(i), &format!("repo{}", i / 2))).collect();
        // Much the same passage as c00's, from elsewhere.
        entries.push(entry("near", &format!("{} more", unlike(0)), "elsewhere"));
        // A family too large to be held out.
        entries.extend((0..6).map(|i| entry(&format!("big{i}"), &unlike(100 + i), "big")));
        let split = split(entries, 40);
        let family = |entry: &Entry| if entry.name == "near" { "repo0".to_owned() } else { entry.kin[0].clone() };
        let held: BTreeSet<String> = split.held_out.iter().map(family).collect();
        assert!(split.train.iter().all(|entry| !held.contains(&family(entry))));
        assert!(split.train.iter().filter(|entry| entry.name.starts_with("big")).count() == 6);
        assert_eq!(split.families, 21);
        assert!((16..=18).contains(&split.held_out.len()), "{}", split.held_out.len());
        assert_eq!(split.held_out.len() + split.train.len(), 47);
    }

    #[test]
    fn copies_are_left_out() {
        let mut twin = entry("b", &unlike(1), "y");
        twin.query = "What A does".into();
        let entries = vec![entry("a", &unlike(0), "x"), twin, entry("c", &unlike(0), "z"), entry("d", &unlike(2), "w")];
        let names: Vec<String> = without_copies(entries).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a", "d"]);
    }
}
