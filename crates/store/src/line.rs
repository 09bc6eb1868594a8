//! The steps that a log still names, folded entry by entry.
//!
//! A `retain` entry sums up what is left before it, so that nobody has to read further back: what reading costs depends on what is
//! kept, not on how long the log has become.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::record::{EntryKind, LogEntry};

/// The numbers of the entries before a `retain` entry whose steps it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Those that count, oldest first.
    pub reached: Vec<u64>,
    /// Those that a later generation went back behind, and that are not given up yet.
    pub left: Vec<u64>,
}

impl Kept {
    /// All numbers, in the order of the log.
    pub(crate) fn all(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.reached.iter().chain(&self.left).copied().collect();
        all.sort_unstable();
        all
    }
}

/// The state of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Line {
    /// The steps that count, oldest first, each after the one before it.
    pub(crate) reached: Vec<LogEntry>,
    /// The steps that a later generation went back behind. Their folders are still there.
    pub(crate) left: Vec<LogEntry>,
    /// Folders that entries read so far gave up, and that no later entry names.
    pub(crate) gone: BTreeSet<String>,
}

impl Line {
    /// The state that a `retain` entry sums up, from the entries that it names.
    pub(crate) fn summed_up(kept: &Kept, entries: Vec<LogEntry>) -> Self {
        let (left, reached) = entries.into_iter().partition(|entry| kept.left.contains(&entry.seq));
        Self { reached, left, gone: BTreeSet::new() }
    }

    /// The next entry of the log. A step that is not after its predecessor means that a later generation went back: what
    /// it went back behind is history that led nowhere.
    pub(crate) fn add(&mut self, entry: LogEntry) {
        match entry.kind {
            EntryKind::Fence => {}
            EntryKind::Step => {
                let stay = self.reached.partition_point(|before| before.step < entry.step);
                self.left.extend(self.reached.drain(stay..));
                if let Some(folder) = &entry.folder {
                    self.gone.remove(folder);
                }
                self.reached.push(entry);
            }
            EntryKind::Retain => {
                self.give_up(&entry.removed);
                self.gone.extend(entry.removed);
            }
        }
    }

    /// Drops the steps of these folders.
    fn give_up(&mut self, removed: &[String]) {
        let removed: BTreeSet<&str> = removed.iter().map(String::as_str).collect();
        let stays = |entry: &LogEntry| entry.folder.as_deref().is_none_or(|folder| !removed.contains(folder));
        self.reached.retain(stays);
        self.left.retain(stays);
    }

    /// What is left once these folders are given up.
    pub(crate) fn without(&self, removed: &[String]) -> Kept {
        let mut rest = self.clone();
        rest.give_up(removed);
        let seqs = |entries: &[LogEntry]| entries.iter().map(|entry| entry.seq).collect();
        Kept { reached: seqs(&rest.reached), left: seqs(&rest.left) }
    }

    /// Whether an entry still names the folder.
    pub(crate) fn names(&self, folder: &str) -> bool {
        self.reached.iter().chain(&self.left).any(|entry| entry.folder.as_deref() == Some(folder))
    }
}

#[cfg(test)]
mod tests {
    use pleach_base::{Fence, Generation, Step, Term, Timestamp};
    use proptest::prelude::*;

    use super::*;
    use crate::record::FORMAT_VERSION;

    fn entry(seq: u64, kind: EntryKind) -> LogEntry {
        LogEntry {
            format_version: FORMAT_VERSION,
            seq,
            kind,
            fence: Fence { term: Term(1), generation: Generation(1) },
            writer: "w".to_owned(),
            at_ms: Timestamp(seq),
            step: None,
            folder: None,
            manifest_sha256: None,
            bytes: 0,
            publishable: true,
            metrics: Default::default(),
            ledger: Vec::new(),
            removed: Vec::new(),
            kept: None,
        }
    }

    /// A log in which steps go forth and back and some folders are given up, with and without sums.
    fn log(acts: &[(u64, bool)]) -> Vec<LogEntry> {
        let (mut line, mut log) = (Line::default(), Vec::new());
        for (step, retain) in acts {
            let seq = log.len() as u64 + 1;
            let mut next = entry(seq, if *retain { EntryKind::Retain } else { EntryKind::Step });
            if *retain {
                let named = line.reached.iter().chain(&line.left).filter_map(|entry| entry.folder.clone());
                next.removed = named.enumerate().filter(|(at, _)| *at as u64 % 3 != step % 3).map(|(_, f)| f).collect();
                next.kept = (step % 2 == 0).then(|| line.without(&next.removed));
            } else {
                next.step = Some(Step(*step));
                next.folder = Some(format!("steps/{seq}"));
            }
            line.add(next.clone());
            log.push(next);
        }
        log
    }

    proptest! {
        #[test]
        fn a_sum_stands_for_everything_before_it(acts in proptest::collection::vec((1u64..12, prop::bool::weighted(0.3)), 1..40)) {
            let log = log(&acts);
            let mut whole = Line::default();
            log.iter().cloned().for_each(|entry| whole.add(entry));
            prop_assert!(whole.reached.is_sorted_by(|a, b| a.step < b.step));
            for (at, entry) in log.iter().enumerate() {
                let Some(kept) = &entry.kept else { continue };
                let named = kept.all().into_iter().map(|seq| log[seq as usize - 1].clone()).collect();
                let mut line = Line::summed_up(kept, named);
                log[at + 1..].iter().cloned().for_each(|entry| line.add(entry));
                prop_assert_eq!(&line.reached, &whole.reached);
                let seqs = |line: &Line| line.left.iter().map(|entry| entry.seq).collect::<BTreeSet<_>>();
                prop_assert_eq!(seqs(&line), seqs(&whole));
            }
        }
    }
}
