//! What each step was fed, written down before it is: the ground on which others count samples that were lost or
//! repeated.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use pleach_base::{Result, ResultExt as _, code};
use serde::{Deserialize, Serialize};

/// Version of the lines.
pub const FEED_VERSION: u32 = 1;

/// One line of a feed log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FeedRow {
    /// The rows that this rank is about to compute.
    Fed {
        /// [`FEED_VERSION`].
        v: u32,
        /// The job.
        job: String,
        /// The task.
        task: String,
        /// The step that these rows make, from 1.
        step: u64,
        /// Term of the generation.
        term: u64,
        /// Its number.
        generation: u64,
        /// This rank.
        rank: u32,
        /// Ranks of the generation.
        world: u32,
        /// The lanes of this rank.
        lanes: Vec<FedLane>,
    },
    /// Where a generation goes on.
    Resume {
        /// [`FEED_VERSION`].
        v: u32,
        /// The job.
        job: String,
        /// The task.
        task: String,
        /// Steps done.
        step: u64,
        /// Term of the generation.
        term: u64,
        /// Its number.
        generation: u64,
        /// Where the state came from.
        source: ResumedFrom,
        /// Term of the generation that made it, or had settled on it; 0 for the untrained state.
        made_term: u64,
        /// Number of that generation.
        made_generation: u64,
    },
}

/// What a lane was fed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FedLane {
    /// The lane.
    pub lane: u32,
    /// Ids of its samples, in order.
    pub samples: Vec<u64>,
}

/// Where a generation takes a task's state from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResumedFrom {
    /// A rank had it.
    Memory,
    /// The newest durable step.
    Store,
    /// It is the untrained state.
    Fresh,
}

/// Takes the lines of a feed log.
pub trait FeedSink: Send + Sync {
    /// Adds a line. When it returns, the line outlives this process.
    ///
    /// # Errors
    /// `IO` when it cannot be written: the step is then not trained.
    fn append(&self, row: &FeedRow) -> Result<()>;
}

/// A feed log in a file that only grows.
#[derive(Debug)]
pub struct FeedLog {
    path: PathBuf,
    file: File,
}

impl FeedLog {
    /// Opens or creates the file; what is in it stays.
    ///
    /// # Errors
    /// `IO` when the folder or the file cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = || format!("--feed-log: {} cannot be opened", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).or_code(code::IO, failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).or_code(code::IO, failed)?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl FeedSink for FeedLog {
    fn append(&self, row: &FeedRow) -> Result<()> {
        let failed = || format!("--feed-log: {} cannot be written", self.path.display());
        let mut line = serde_json::to_vec(row).or_code(code::INTERNAL, failed)?;
        line.push(b'\n');
        // One write a line: a process that is killed leaves whole lines behind.
        match (&self.file).write(&line).or_code(code::IO, failed)? {
            written if written == line.len() => Ok(()),
            _ => Err(code::IO.error(failed()).hint("is the disk full?")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented_and_survive_a_second_opening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/w-1.jsonl");
        let (job, task) = ("j".to_owned(), "a".to_owned());
        let fed = FeedRow::Fed {
            v: FEED_VERSION,
            job: job.clone(),
            task: task.clone(),
            step: 3,
            term: 1,
            generation: 2,
            rank: 0,
            world: 2,
            lanes: vec![FedLane { lane: 0, samples: vec![5, 7] }],
        };
        let source = ResumedFrom::Memory;
        let (v, step, term, generation, made_term, made_generation) = (FEED_VERSION, 2, 1, 2, 1, 1);
        let resume = FeedRow::Resume { v, job, task, step, term, generation, source, made_term, made_generation };
        FeedLog::open(&path).unwrap().append(&resume).unwrap();
        FeedLog::open(&path).unwrap().append(&fed).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines,
            [
                serde_json::json!({"v": 1, "kind": "resume", "job": "j", "task": "a", "step": 2, "term": 1,
                    "generation": 2, "source": "memory", "made_term": 1, "made_generation": 1}),
                serde_json::json!({"v": 1, "kind": "fed", "job": "j", "task": "a", "step": 3, "term": 1,
                    "generation": 2, "rank": 0, "world": 2, "lanes": [{"lane": 0, "samples": [5, 7]}]}),
            ]
        );
    }
}
