//! The workers' feed logs: what each of them put into its model, written by itself, before the forward of the step.
//!
//! Files only grow. A log is read on from where the last reading ended, so that the harness sees each line soon after it was
//! written, and can say when.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// (term, generation): the order of generations.
pub(crate) type Fence = (u64, u64);

/// One line of a feed log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// These rows go into the forward of `step` now.
    Fed(Fed),
    /// The generation goes on from `step`.
    Resume(Resume),
}

/// What one rank fed for one step.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Fed {
    pub(crate) task: String,
    pub(crate) step: u64,
    pub(crate) term: u64,
    pub(crate) generation: u64,
    pub(crate) rank: u32,
    pub(crate) lanes: Vec<Lane>,
}

/// The rows of one lane, in their order.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Lane {
    pub(crate) lane: u32,
    pub(crate) samples: Vec<u64>,
}

/// Where one rank says that its generation goes on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Resume {
    pub(crate) task: String,
    pub(crate) step: u64,
    pub(crate) term: u64,
    pub(crate) generation: u64,
    pub(crate) source: String,
}

impl Line {
    pub(crate) fn fence(&self) -> Fence {
        match self {
            Self::Fed(fed) => (fed.term, fed.generation),
            Self::Resume(resume) => (resume.term, resume.generation),
        }
    }
}

/// All feed logs of a folder.
#[derive(Debug)]
pub(crate) struct Feeds {
    folder: PathBuf,
    /// How far each file has been read.
    read: BTreeMap<PathBuf, u64>,
}

impl Feeds {
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), read: BTreeMap::new() }
    }

    /// The whole lines that were added since the last call, file by file.
    pub(crate) fn more(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(_) => return Ok(lines),
        };
        files.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
        files.sort();
        for path in files {
            let from = self.read.entry(path.clone()).or_default();
            let mut file = File::open(&path).with_context(|| path.display().to_string())?;
            if file.metadata()?.len() == *from {
                continue;
            }
            file.seek(SeekFrom::Start(*from))?;
            let mut added = Vec::new();
            file.read_to_end(&mut added)?;
            // A line without its end is still being written.
            let whole = added.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            *from += whole as u64;
            for line in added[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let parsed = serde_json::from_slice(line)
                    .with_context(|| format!("{}: {}", path.display(), String::from_utf8_lossy(line)))?;
                lines.push(parsed);
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_read_once_and_only_when_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut feeds = Feeds::of(folder.path());
        let mut log = File::create(folder.path().join("w0-1.jsonl")).unwrap();
        let fed = r#"{"v":1,"kind":"fed","job":"j","task":"t","step":3,"term":1,"generation":2,"rank":0,"world":2,"lanes":[{"lane":1,"samples":[5,6]}]}"#;
        let resume =
            r#"{"v":1,"kind":"resume","job":"j","task":"t","step":2,"term":1,"generation":2,"source":"memory"}"#;
        write!(log, "{resume}\n{}", &fed[..20]).unwrap();
        assert_eq!(feeds.more().unwrap().len(), 1);
        assert!(feeds.more().unwrap().is_empty());
        writeln!(log, "{}", &fed[20..]).unwrap();
        let lines = feeds.more().unwrap();
        let [Line::Fed(line)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((line.step, line.lanes[0].lane, &line.lanes[0].samples), (3, 1, &vec![5, 6]));
        assert_eq!(lines[0].fence(), (1, 2));
        writeln!(log, "not json").unwrap();
        assert!(feeds.more().is_err());
    }
}
