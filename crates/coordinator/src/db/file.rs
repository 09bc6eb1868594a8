//! State in a redb file, or in memory for as long as the process lives.

use std::collections::VecDeque;
use std::path::Path;

use pleach_base::{Error, Result, ResultExt, TaskName, Term, Timestamp, code};
use pleach_proto::v1::{CommitRecord, WatchJobResponse};
use pleach_sched::{FORMAT_VERSION, Head, JobKey, KEPT};
use prost::Message;
use redb::backends::InMemoryBackend;
use redb::{
    Database, Durability, Key, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use super::{
    Backend, Changes, Progress, Stored, decode_progress, decode_record, decode_update, encode_progress, encode_record,
    is_event, merged,
};
use crate::view;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("jobs");
const PROGRESS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("progress");
/// Job, number: all updates but events.
const UPDATES: Numbered = TableDefinition::new("updates");
/// Job, number: what tells a job's history. Rows of the step log do not push it out.
const EVENTS: Numbered = TableDefinition::new("events");
/// Job, task, step.
const COMMITS: TableDefinition<'_, (&str, &str, u64), &[u8]> = TableDefinition::new("commits");

type Numbered = TableDefinition<'static, (&'static str, u64), &'static [u8]>;

/// The open database.
pub(crate) struct File(Database);

impl File {
    /// Opens a file, creating it when it is missing; without a path, a state that is gone with the process.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let database = match path {
            None => Database::builder().create_with_backend(InMemoryBackend::new()).map_err(broken)?,
            Some(path) => open_file(path)?,
        };
        let file = Self(database);
        file.check_format()?;
        Ok(file)
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
            transaction.open_table(EVENTS).map_err(broken)?;
            transaction.open_table(COMMITS).map_err(broken)?;
        }
        transaction.commit().map_err(broken)
    }

    /// Begins the next term: every start of a coordinator is a new leader. Says also whether the leader before ended in
    /// order ([`Backend::close`]); if not, updates that had not reached the disk are gone.
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
}

impl Backend for File {
    /// The file is locked: while it is open nobody else leads.
    fn confirm(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self) -> Result<Vec<Stored>> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let jobs = transaction.open_table(JOBS).map_err(broken)?;
        jobs.iter()
            .map_err(broken)?
            .map(|entry| {
                let (name, value) = entry.map_err(broken)?;
                load_job(&transaction, name.value(), value.value())
            })
            .collect()
    }

    fn write(&self, changes: Changes) -> Result<()> {
        let mut transaction = self.0.begin_write().map_err(broken)?;
        if !changes.durable {
            transaction.set_durability(Durability::None).map_err(broken)?;
        }
        put_jobs(&transaction, changes.jobs, changes.progress)?;
        put_updates(&transaction, &changes.updates)?;
        put_commits(&transaction, &changes.commits)?;
        {
            let mut updates = transaction.open_table(UPDATES).map_err(broken)?;
            let mut events = transaction.open_table(EVENTS).map_err(broken)?;
            let mut commits = transaction.open_table(COMMITS).map_err(broken)?;
            for (key, before) in &changes.trims {
                drop_range(&mut updates, (key.to_string().as_str(), 0)..(key.to_string().as_str(), *before))?;
            }
            for (key, before) in &changes.event_trims {
                drop_range(&mut events, (key.to_string().as_str(), 0)..(key.to_string().as_str(), *before))?;
            }
            for (key, task, before) in &changes.commit_trims {
                let (name, task) = (key.to_string(), task.as_str());
                drop_range(&mut commits, (name.as_str(), task, 0)..(name.as_str(), task, *before))?;
            }
        }
        for key in &changes.forgotten {
            forget(&transaction, &key.to_string())?;
        }
        transaction.commit().map_err(broken)
    }

    fn updates(&self, key: &JobKey, after: u64, most: usize) -> Result<Vec<WatchJobResponse>> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let read = |table: Numbered| -> Result<Vec<WatchJobResponse>> {
            let table = transaction.open_table(table).map_err(broken)?;
            let name = key.to_string();
            let from = (name.as_str(), after.saturating_add(1));
            let range = table.range(from..=(name.as_str(), u64::MAX)).map_err(broken)?;
            range
                .take(most)
                .map(|entry| {
                    let (at, bytes) = entry.map_err(broken)?;
                    decode_update(key, at.value().1, bytes.value())
                })
                .collect()
        };
        Ok(merged(read(UPDATES)?, read(EVENTS)?, most))
    }

    fn commits(&self, key: &JobKey, task: &str) -> Result<Vec<CommitRecord>> {
        let transaction = self.0.begin_read().map_err(broken)?;
        let commits = transaction.open_table(COMMITS).map_err(broken)?;
        let name = key.to_string();
        let mut all = Vec::new();
        for entry in commits.range((name.as_str(), task, 0)..).map_err(broken)? {
            let (at, bytes) = entry.map_err(broken)?;
            let (of, its, step) = at.value();
            if of != name || (!task.is_empty() && its != task) {
                break;
            }
            all.push(decode_commit(of, step, bytes.value())?);
        }
        Ok(all)
    }

    /// Brings everything to the disk and notes that it was.
    fn close(&self) -> Result<()> {
        let transaction = self.0.begin_write().map_err(broken)?;
        transaction.open_table(META).map_err(broken)?.insert("clean", 1).map_err(broken)?;
        transaction.commit().map_err(broken)
    }
}

fn load_job(transaction: &ReadTransaction, name: &str, value: &[u8]) -> Result<Stored> {
    let (key, mut record) = decode_record(name, value)?;
    let progress = match transaction.open_table(PROGRESS).map_err(broken)?.get(name).map_err(broken)? {
        Some(bytes) => decode_progress(name, bytes.value())?,
        None => Progress { tasks: Vec::new(), reserved: 0 },
    };
    let updates = transaction.open_table(UPDATES).map_err(broken)?;
    let mut kept = updates.range((name, 0)..=(name, u64::MAX)).map_err(broken)?;
    let first = kept.next().transpose().map_err(broken)?.map(|(key, _)| key.value().1);
    // With one update the range is spent after the first look.
    let last = kept.next_back().transpose().map_err(broken)?.map(|(key, _)| key.value().1).or(first);
    let events = transaction.open_table(EVENTS).map_err(broken)?;
    let events = events.range((name, 0)..=(name, u64::MAX)).map_err(broken)?;
    let events: VecDeque<u64> =
        events.map(|entry| entry.map(|(key, _)| key.value().1)).collect::<Result<_, _>>().map_err(broken)?;
    let last_seq = last.max(events.back().copied()).unwrap_or_default();
    let first_seq = first.unwrap_or(last_seq + 1);
    let mut stored = Stored {
        key,
        tasks: progress.tasks,
        first_seq,
        last_seq,
        reserved: progress.reserved,
        events,
        oldest: [].into(),
        record: record.clone(),
    };
    let commits = transaction.open_table(COMMITS).map_err(broken)?;
    for task in stored.tasks.iter().map(|task| task.name.as_str()) {
        let range = || commits.range((name, task, 0)..=(name, task, u64::MAX)).map_err(broken);
        let Some(oldest) = range()?.next().transpose().map_err(broken)? else { continue };
        stored.oldest.insert(TaskName::from(task), oldest.0.value().2);
        let mut head = Head::default();
        for entry in range()?.rev().take(KEPT) {
            let (at, bytes) = entry.map_err(broken)?;
            head.recent.push_front(view::recorded(&decode_commit(name, at.value().2, bytes.value())?));
        }
        record.sched.heads.insert(TaskName::from(task), head);
    }
    stored.record = record;
    Ok(stored)
}

fn decode_commit(job: &str, step: u64, bytes: &[u8]) -> Result<CommitRecord> {
    CommitRecord::decode(bytes)
        .or_code(code::STATE_CORRUPT, || format!("job {job}: the record of step {step} cannot be read"))
}

fn put_jobs(
    transaction: &WriteTransaction,
    jobs: Vec<(JobKey, super::JobRecord)>,
    progress: Vec<(JobKey, Progress)>,
) -> Result<()> {
    let mut table = transaction.open_table(JOBS).map_err(broken)?;
    for (key, record) in jobs {
        table.insert(key.to_string().as_str(), encode_record(&key, record)?.as_slice()).map_err(broken)?;
    }
    let mut table = transaction.open_table(PROGRESS).map_err(broken)?;
    for (key, progress) in progress {
        table.insert(key.to_string().as_str(), encode_progress(progress).as_slice()).map_err(broken)?;
    }
    Ok(())
}

fn put_updates(transaction: &WriteTransaction, all: &[(JobKey, u64, WatchJobResponse)]) -> Result<()> {
    let mut updates = transaction.open_table(UPDATES).map_err(broken)?;
    let mut events = transaction.open_table(EVENTS).map_err(broken)?;
    for (key, seq, update) in all {
        let (name, bytes) = (key.to_string(), update.encode_to_vec());
        let table = if is_event(update) { &mut events } else { &mut updates };
        table.insert((name.as_str(), *seq), bytes.as_slice()).map_err(broken)?;
    }
    Ok(())
}

fn put_commits(transaction: &WriteTransaction, all: &[(JobKey, CommitRecord)]) -> Result<()> {
    let mut commits = transaction.open_table(COMMITS).map_err(broken)?;
    for (key, record) in all {
        let (name, task) = (key.to_string(), record.task.as_str());
        // What an older generation made of later steps does not stand any more.
        drop_range(&mut commits, (name.as_str(), task, record.step + 1)..(name.as_str(), task, u64::MAX))?;
        commits.insert((name.as_str(), task, record.step), record.encode_to_vec().as_slice()).map_err(broken)?;
    }
    Ok(())
}

fn forget(transaction: &WriteTransaction, name: &str) -> Result<()> {
    transaction.open_table(JOBS).map_err(broken)?.remove(name).map_err(broken)?;
    transaction.open_table(PROGRESS).map_err(broken)?.remove(name).map_err(broken)?;
    for table in [UPDATES, EVENTS] {
        drop_range(&mut transaction.open_table(table).map_err(broken)?, (name, 0)..(name, u64::MAX))?;
    }
    // A task's name sorts before the character after the last one.
    drop_range(&mut transaction.open_table(COMMITS).map_err(broken)?, (name, "", 0)..(name, "\u{10ffff}", u64::MAX))
}

fn drop_range<'k, K: Key + 'static>(
    table: &mut Table<'_, K, &'static [u8]>,
    range: std::ops::Range<K::SelfType<'k>>,
) -> Result<()> {
    table.retain_in(range, |_, _| false).map_err(broken)
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
    use pleach_proto::v1::{self, TaskStatus};
    use pleach_sched::{Job, Needs};

    use super::super::JobRecord;
    use super::*;

    fn line(text: String) -> WatchJobResponse {
        let line = v1::LogLine { text, ..v1::LogLine::default() };
        WatchJobResponse { seq: 0, update: Some(Update::Log(line)) }
    }

    fn event(message: &str) -> WatchJobResponse {
        let event = v1::Event { message: message.into(), ..v1::Event::default() };
        WatchJobResponse { seq: 0, update: Some(Update::Event(event)) }
    }

    fn commit(task: &str, step: u64, generation: u64) -> CommitRecord {
        CommitRecord { task: task.into(), step, generation, samples: 4, ..CommitRecord::default() }
    }

    fn record() -> JobRecord {
        let needs = Needs { min_workers: 1, max_workers: 1, lanes: 1, restarts: 0, priority: 0 };
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
        let db = File::open(None).unwrap();
        let (a, b) = (JobKey::new("t", "a"), JobKey::new("t", "ab"));
        let updates = |key: &JobKey| (1..=9).map(|seq| (key.clone(), seq, line(seq.to_string()))).collect::<Vec<_>>();
        let changes = Changes {
            jobs: vec![(a.clone(), record()), (b.clone(), record())],
            updates: [updates(&a), updates(&b)].concat(),
            durable: true,
            ..Changes::default()
        };
        db.write(changes).unwrap();
        let seqs = |key: &JobKey, after, most| {
            db.updates(key, after, most).unwrap().iter().map(|update| update.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&a, 0, 3), [1, 2, 3]);
        assert_eq!(seqs(&a, 7, 100), [8, 9]);
        db.write(Changes { trims: vec![(a.clone(), 6)], ..Changes::default() }).unwrap();
        assert_eq!(seqs(&a, 2, 100), [6, 7, 8, 9]);
        let loaded = db.load().unwrap();
        assert_eq!(loaded.iter().map(|s| (s.first_seq, s.last_seq)).collect::<Vec<_>>(), [(6, 9), (1, 9)]);
        db.write(Changes { forgotten: vec![a.clone()], ..Changes::default() }).unwrap();
        assert!(seqs(&a, 0, 100).is_empty());
        assert_eq!((seqs(&b, 0, 100).len(), db.load().unwrap().len()), (9, 1));
    }

    #[test]
    fn one_update_and_none_are_loaded_rightly() {
        let db = File::open(None).unwrap();
        let (one, none) = (JobKey::new("t", "one"), JobKey::new("t", "none"));
        let jobs = vec![(none, record()), (one.clone(), record())];
        let updates = vec![(one, 5, line("x".into()))];
        db.write(Changes { jobs, updates, ..Changes::default() }).unwrap();
        let loaded = db.load().unwrap();
        assert_eq!(loaded.iter().map(|s| (s.first_seq, s.last_seq)).collect::<Vec<_>>(), [(1, 0), (5, 5)]);
    }

    #[test]
    fn terms_grow_and_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.redb");
        let db = File::open(Some(&path)).unwrap();
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
        assert_eq!(File::open(Some(&path)).err().unwrap().code(), code::STATE_CORRUPT);
    }

    #[test]
    fn events_outlive_the_rows_between_them_and_are_read_in_order() {
        let db = File::open(None).unwrap();
        let key = JobKey::new("t", "j");
        let all = (1..=9).map(|seq| (key.clone(), seq, if seq % 3 == 0 { event("e") } else { line("l".into()) }));
        let (jobs, updates) = (vec![(key.clone(), record())], all.collect());
        db.write(Changes { jobs, updates, ..Changes::default() }).unwrap();
        let seqs = |after, most| db.updates(&key, after, most).unwrap().iter().map(|u| u.seq).collect::<Vec<_>>();
        assert_eq!(seqs(0, 4), [1, 2, 3, 4]);
        db.write(Changes { trims: vec![(key.clone(), 8)], event_trims: vec![(key.clone(), 6)], ..Changes::default() })
            .unwrap();
        assert_eq!(seqs(0, 99), [6, 8, 9]);
        let stored = db.load().unwrap().remove(0);
        assert_eq!(
            (stored.first_seq, stored.last_seq, stored.events.into_iter().collect::<Vec<_>>()),
            (8, 9, vec![6, 9])
        );
    }

    #[test]
    fn records_are_kept_whole_superseded_trimmed_and_make_the_heads() {
        let db = File::open(None).unwrap();
        let (key, other) = (JobKey::new("t", "j"), JobKey::new("t", "j2"));
        let tasks =
            |names: [&str; 2]| names.map(|name| TaskStatus { name: name.into(), ..Default::default() }).to_vec();
        let commits = (1..=40).map(|step| (key.clone(), commit("a", step, 1)));
        let changes = Changes {
            jobs: vec![(key.clone(), record()), (other.clone(), record())],
            progress: vec![(key.clone(), Progress { tasks: tasks(["a", "b"]), reserved: 7 })],
            commits: commits.chain([(key.clone(), commit("b", 1, 1)), (other.clone(), commit("a", 1, 1))]).collect(),
            ..Changes::default()
        };
        db.write(changes).unwrap();
        assert_eq!(db.commits(&key, "").unwrap().len(), 41);
        assert_eq!(db.commits(&key, "b").unwrap(), [commit("b", 1, 1)]);
        // Generation 2 makes step 39 anew: what generation 1 made after it does not stand.
        let (commits, commit_trims) = (vec![(key.clone(), commit("a", 39, 2))], vec![(key.clone(), "a".into(), 5)]);
        db.write(Changes { commits, commit_trims, ..Changes::default() }).unwrap();
        let kept: Vec<_> = db.commits(&key, "a").unwrap().iter().map(|r| (r.step, r.generation)).collect();
        assert_eq!((kept.first(), kept.last(), kept.len()), (Some(&(5, 1)), Some(&(39, 2)), 35));
        let stored = db.load().unwrap().remove(0);
        let head = &stored.record.sched.heads[&TaskName::from("a")];
        assert_eq!(
            (head.recent.len(), head.step().0, stored.oldest[&TaskName::from("a")], stored.reserved),
            (KEPT, 39, 5, 7)
        );
        db.write(Changes { forgotten: vec![key.clone()], ..Changes::default() }).unwrap();
        assert!(db.commits(&key, "").unwrap().is_empty());
        assert_eq!(db.commits(&other, "").unwrap().len(), 1);
    }
}
