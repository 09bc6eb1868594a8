//! What survives: jobs, their progress and their updates, in redb.
//!
//! Progress and updates are kept in their wire form (protobuf keeps what older versions wrote readable, and NaN whole);
//! jobs as JSON, so that a person can look.

use std::path::Path;

use pleach_base::{Error, Result, ResultExt, Term, Timestamp, code};
use pleach_proto::v1::{self, WatchJobResponse};
use pleach_sched::{FORMAT_VERSION, Job, JobKey};
use prost::Message;
use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::config::StateStore;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("jobs");
const PROGRESS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("progress");
const UPDATES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("updates");

/// A job as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) format_version: u32,
    /// The resolved job file, canonical JSON.
    pub(crate) spec: String,
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    /// What the scheduler knows of it.
    pub(crate) sched: Job,
}

/// A stored job with its progress and the range of its kept updates.
pub(crate) struct Stored {
    pub(crate) key: JobKey,
    pub(crate) record: JobRecord,
    pub(crate) tasks: Vec<v1::TaskStatus>,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
}

/// What one transaction changes.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) jobs: Vec<(JobKey, JobRecord)>,
    pub(crate) progress: Vec<(JobKey, Vec<v1::TaskStatus>)>,
    pub(crate) updates: Vec<(JobKey, u64, WatchJobResponse)>,
    /// Forget updates before this number.
    pub(crate) trims: Vec<(JobKey, u64)>,
    pub(crate) forgotten: Vec<JobKey>,
    /// Whether it must be on disk before anybody hears of it.
    pub(crate) durable: bool,
}

/// The open database.
pub(crate) struct Db(Database);

impl Db {
    pub(crate) fn open(store: &StateStore) -> Result<Self> {
        let database = match store {
            StateStore::Memory => Database::builder().create_with_backend(InMemoryBackend::new()).map_err(broken)?,
            StateStore::File(path) => open_file(path)?,
        };
        let db = Self(database);
        db.check_format()?;
        Ok(db)
    }

    fn check_format(&self) -> Result<()> {
        let transaction = self.0.begin_write().map_err(broken)?;
        {
            let mut meta = transaction.open_table(META).map_err(broken)?;
            let found = meta.get("format_version").map_err(broken)?.map(|value| value.value());
            if found.is_some_and(|found| found > u64::from(FORMAT_VERSION)) {
                let found = found.unwrap_or_default();
                return Err(code::STATE_CORRUPT
                    .error(format!("the state is of format {found}, this build reads {FORMAT_VERSION}"))
                    .hint("use the version of Pleach that wrote it, or a newer one"));
            }
            meta.insert("format_version", u64::from(FORMAT_VERSION)).map_err(broken)?;
            transaction.open_table(JOBS).map_err(broken)?;
            transaction.open_table(PROGRESS).map_err(broken)?;
            transaction.open_table(UPDATES).map_err(broken)?;
        }
        transaction.commit().map_err(broken)
    }

    /// Begins the next term: every start of a coordinator is a new leader. Says also whether the leader before ended in
    /// order ([`Db::close`]); if not, updates that had not reached the disk are gone.
    ///
    /// Terms follow the seconds of the wall clock where those are ahead: a coordinator that begins with an empty state over
    /// a store that an earlier one wrote must not be fenced by it.
    pub(crate) fn take_term(&self, now: Timestamp) -> Result<(Term, bool)> {
        let transaction = self.0.begin_write().map_err(broken)?;
        let (term, clean) = {
            let mut meta = transaction.open_table(META).map_err(broken)?;
            let term = (meta.get("term").map_err(broken)?.map_or(0, |value| value.value()) + 1).max(now.0 / 1000);
            meta.insert("term", term).map_err(broken)?;
            let clean = meta.insert("clean", 0).map_err(broken)?.is_none_or(|value| value.value() == 1);
            (term, clean)
        };
        transaction.commit().map_err(broken)?;
        Ok((Term(term), clean))
    }

    /// Brings everything to the disk and notes that it was.
    pub(crate) fn close(&self) -> Result<()> {
        let transaction = self.0.begin_write().map_err(broken)?;
        transaction.open_table(META).map_err(broken)?.insert("clean", 1).map_err(broken)?;
        transaction.commit().map_err(broken)
    }

    /// All jobs.
    pub(crate) fn load(&self) -> Result<Vec<Stored>> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let jobs = transaction.open_table(JOBS).map_err(broken)?;
        let progress = transaction.open_table(PROGRESS).map_err(broken)?;
        let updates = transaction.open_table(UPDATES).map_err(broken)?;
        let mut all = Vec::new();
        for entry in jobs.iter().map_err(broken)? {
            let (name, value) = entry.map_err(broken)?;
            let name = name.value();
            let unreadable = || format!("job {name}: its record cannot be read");
            let key = JobKey::try_from(name.to_owned()).or_code(code::STATE_CORRUPT, unreadable)?;
            let record = serde_json::from_slice(value.value()).or_code(code::STATE_CORRUPT, unreadable)?;
            let tasks = match progress.get(name).map_err(broken)? {
                Some(bytes) => v1::Job::decode(bytes.value()).or_code(code::STATE_CORRUPT, unreadable)?.tasks,
                None => Vec::new(),
            };
            let mut kept = updates.range((name, 0)..=(name, u64::MAX)).map_err(broken)?;
            let first_seq = kept.next().transpose().map_err(broken)?.map(|(key, _)| key.value().1);
            let last_seq = kept.next_back().transpose().map_err(broken)?.map(|(key, _)| key.value().1);
            // With one update the range is spent after the first look; with none the next number is 1.
            let last_seq = last_seq.or(first_seq).unwrap_or_default();
            all.push(Stored { key, record, tasks, first_seq: first_seq.unwrap_or(1), last_seq });
        }
        Ok(all)
    }

    /// Applies changes, all or none.
    pub(crate) fn write(&self, changes: &Changes) -> Result<()> {
        let mut transaction = self.0.begin_write().map_err(broken)?;
        if !changes.durable {
            transaction.set_durability(Durability::None).map_err(broken)?;
        }
        {
            let mut jobs = transaction.open_table(JOBS).map_err(broken)?;
            let mut progress = transaction.open_table(PROGRESS).map_err(broken)?;
            let mut updates = transaction.open_table(UPDATES).map_err(broken)?;
            for (key, record) in &changes.jobs {
                let bytes =
                    serde_json::to_vec(record).or_code(code::INTERNAL, || format!("job {key}: cannot be written"))?;
                jobs.insert(key.to_string().as_str(), bytes.as_slice()).map_err(broken)?;
            }
            for (key, tasks) in &changes.progress {
                let bytes = v1::Job { tasks: tasks.clone(), ..v1::Job::default() }.encode_to_vec();
                progress.insert(key.to_string().as_str(), bytes.as_slice()).map_err(broken)?;
            }
            for (key, seq, update) in &changes.updates {
                let name = key.to_string();
                updates.insert((name.as_str(), *seq), update.encode_to_vec().as_slice()).map_err(broken)?;
            }
            for (key, before) in &changes.trims {
                let name = key.to_string();
                updates.retain_in((name.as_str(), 0)..(name.as_str(), *before), |_, _| false).map_err(broken)?;
            }
            for key in &changes.forgotten {
                let name = key.to_string();
                jobs.remove(name.as_str()).map_err(broken)?;
                progress.remove(name.as_str()).map_err(broken)?;
                updates.retain_in((name.as_str(), 0)..=(name.as_str(), u64::MAX), |_, _| false).map_err(broken)?;
            }
        }
        transaction.commit().map_err(broken)
    }

    /// Up to `most` kept updates of a job after the one with number `after`.
    pub(crate) fn updates(&self, key: &JobKey, after: u64, most: usize) -> Result<Vec<WatchJobResponse>> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let updates = transaction.open_table(UPDATES).map_err(broken)?;
        let name = key.to_string();
        let range =
            updates.range((name.as_str(), after.saturating_add(1))..=(name.as_str(), u64::MAX)).map_err(broken)?;
        range
            .take(most)
            .map(|entry| {
                let (at, bytes) = entry.map_err(broken)?;
                let seq = at.value().1;
                let mut update = WatchJobResponse::decode(bytes.value())
                    .or_code(code::STATE_CORRUPT, || format!("job {key}: update {seq} cannot be read"))?;
                update.seq = seq;
                Ok(update)
            })
            .collect()
    }
}

fn open_file(path: &Path) -> Result<Database> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .or_code(code::IO, || format!("{}: cannot make the folder", folder.display()))?;
    }
    Database::create(path).map_err(|error| {
        let hint = match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                Some("another coordinator uses this file: stop it first".to_owned())
            }
            _ => None,
        };
        broken(error).at(path.display()).maybe_hint(hint)
    })
}

fn broken(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let code = match &error {
        redb::Error::Io(_) | redb::Error::DatabaseAlreadyOpen => code::IO,
        _ => code::STATE_CORRUPT,
    };
    code.error("the coordinator's state cannot be read or written").caused_by(error)
}

#[cfg(test)]
mod tests {
    use pleach_proto::v1::watch_job_response::Update;
    use pleach_sched::Needs;

    use super::*;

    fn event(message: String) -> WatchJobResponse {
        let event = v1::Event { message, ..v1::Event::default() };
        WatchJobResponse { seq: 0, update: Some(Update::Event(event)) }
    }

    fn record() -> JobRecord {
        let needs = Needs { min_workers: 1, max_workers: 1, lanes: 1, restarts: 0 };
        JobRecord {
            format_version: FORMAT_VERSION,
            spec: "{}".into(),
            created_ms: 1,
            updated_ms: 2,
            sched: Job::placeholder(needs),
        }
    }

    #[test]
    fn updates_are_paged_trimmed_and_forgotten_with_their_job_alone() {
        let db = Db::open(&StateStore::Memory).unwrap();
        let (a, b) = (JobKey::new("t", "a"), JobKey::new("t", "ab"));
        let updates = |key: &JobKey| (1..=9).map(|seq| (key.clone(), seq, event(seq.to_string()))).collect::<Vec<_>>();
        let changes = Changes {
            jobs: vec![(a.clone(), record()), (b.clone(), record())],
            updates: [updates(&a), updates(&b)].concat(),
            durable: true,
            ..Changes::default()
        };
        db.write(&changes).unwrap();
        let seqs = |key: &JobKey, after, most| {
            db.updates(key, after, most).unwrap().iter().map(|update| update.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&a, 0, 3), [1, 2, 3]);
        assert_eq!(seqs(&a, 7, 100), [8, 9]);
        db.write(&Changes { trims: vec![(a.clone(), 6)], ..Changes::default() }).unwrap();
        assert_eq!(seqs(&a, 2, 100), [6, 7, 8, 9]);
        let loaded = db.load().unwrap();
        assert_eq!(loaded.iter().map(|s| (s.first_seq, s.last_seq)).collect::<Vec<_>>(), [(6, 9), (1, 9)]);
        db.write(&Changes { forgotten: vec![a.clone()], ..Changes::default() }).unwrap();
        assert!(seqs(&a, 0, 100).is_empty());
        assert_eq!((seqs(&b, 0, 100).len(), db.load().unwrap().len()), (9, 1));
    }

    #[test]
    fn one_update_and_none_are_loaded_rightly() {
        let db = Db::open(&StateStore::Memory).unwrap();
        let (one, none) = (JobKey::new("t", "one"), JobKey::new("t", "none"));
        let jobs = vec![(none, record()), (one.clone(), record())];
        let updates = vec![(one, 5, event("x".into()))];
        db.write(&Changes { jobs, updates, ..Changes::default() }).unwrap();
        let loaded = db.load().unwrap();
        assert_eq!(loaded.iter().map(|s| (s.first_seq, s.last_seq)).collect::<Vec<_>>(), [(1, 0), (5, 5)]);
    }

    #[test]
    fn terms_grow_and_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = StateStore::File(folder.path().join("deep/state.redb"));
        let db = Db::open(&store).unwrap();
        let at = |seconds: u64| Timestamp(seconds * 1000);
        assert_eq!(db.take_term(at(0)).unwrap(), (Term(1), true));
        assert_eq!(db.take_term(at(0)).unwrap(), (Term(2), false), "the first leader was not closed");
        db.close().unwrap();
        assert_eq!(db.take_term(at(70)).unwrap(), (Term(70), true), "ahead of what an empty state could have given");
        assert_eq!(db.take_term(at(60)).unwrap().0, Term(71), "a clock that went back");
        let transaction = db.0.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format_version", 99).unwrap();
        transaction.commit().unwrap();
        drop(db);
        assert_eq!(Db::open(&store).err().unwrap().code(), code::STATE_CORRUPT);
    }
}
