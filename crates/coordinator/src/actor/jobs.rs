//! What users ask.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pleach_base::{Error, Result, Tenant, Term, code, suggest};
use pleach_proto::v1;
use pleach_sched::{Event, FORMAT_VERSION, Job, JobKey, JobState, Worker};

use super::{Actor, Entry};
use crate::admit::Admitted;
use crate::db::{Backend, JobRecord, Stored};
use crate::watch::Watched;

/// Everything at a glance.
pub(crate) struct Overview {
    pub(crate) term: Term,
    pub(crate) workers: Vec<Worker>,
    /// All jobs, without their specs.
    pub(crate) jobs: Vec<(JobState, v1::Job)>,
    /// The share of its steps that each job's training waits for input, where that is known.
    pub(crate) input_wait: Vec<(JobKey, f64)>,
}

impl Actor {
    /// Stores a job; false when the same one is there already.
    pub(crate) fn submit(&mut self, admitted: Admitted) -> Result<(v1::Job, bool)> {
        let Admitted { key, spec, needs, tasks } = admitted;
        if let Some(entry) = self.entries.get(&key) {
            if entry.record.spec == spec {
                return Ok((entry.job(&key), false));
            }
            return Err(code::JOB_EXISTS
                .error(format!("job `{}` exists with another spec", key.job))
                .hint("choose another id, or delete the old job once it has ended"));
        }
        let now = self.clock.now().0;
        // Filled in by the scheduler in a moment.
        let sched = Job::placeholder(needs.clone());
        let record = JobRecord { format_version: FORMAT_VERSION, spec, created_ms: now, updated_ms: now, sched };
        let stored = Stored {
            key: key.clone(),
            record,
            tasks,
            first_seq: 1,
            last_seq: 0,
            reserved: 0,
            events: VecDeque::new(),
            oldest: BTreeMap::new(),
        };
        self.entries.insert(key.clone(), Entry::new(stored));
        self.batch.progress(&key);
        self.apply(Event::Submitted { job: key.clone(), needs });
        Ok((self.job(&key)?, true))
    }

    pub(crate) fn job(&self, key: &JobKey) -> Result<v1::Job> {
        Ok(self.entry(key)?.job(key))
    }

    /// Where the recorded steps of a job are.
    pub(crate) fn records(&self, key: &JobKey) -> Result<Arc<dyn Backend>> {
        self.entry(key)?;
        Ok(Arc::clone(&self.db))
    }

    pub(crate) fn list(&self, tenant: &Tenant) -> Vec<v1::Job> {
        let mut jobs: Vec<_> = self.entries.iter().filter(|(key, _)| &key.tenant == tenant).collect();
        jobs.sort_by_key(|(_, entry)| entry.record.sched.order);
        jobs.into_iter().map(|(key, entry)| entry.job(key)).collect()
    }

    pub(crate) fn watch(&self, key: JobKey) -> Result<Watched> {
        let entry = self.entry(&key)?;
        // While somebody watches, the view is that of the last batch that was stored; so will this caller's be by the time
        // of its answer.
        if entry.views.receiver_count() == 0 {
            entry.show(&key);
        }
        let views = entry.views.subscribe();
        Ok(Watched { key, db: Arc::clone(&self.db), views })
    }

    pub(crate) fn cancel(&mut self, key: &JobKey, reason: String) -> Result<v1::Job> {
        let state = self.entry(key)?.record.sched.state;
        if state.is_terminal() && state != JobState::Cancelled {
            return Err(code::JOB_STATE.error(format!("job `{}` has {} already", key.job, state.name())));
        }
        self.apply(Event::CancelAsked { job: key.clone(), reason });
        self.job(key)
    }

    pub(crate) fn delete(&mut self, key: &JobKey) -> Result<()> {
        let state = self.entry(key)?.record.sched.state;
        if !state.is_terminal() {
            return Err(code::JOB_STATE
                .error(format!("job `{}` is {}: only ended jobs can be deleted", key.job, state.name()))
                .hint(format!("`pleach cancel {}` first", key.job)));
        }
        self.apply(Event::Deleted { job: key.clone() });
        Ok(())
    }

    /// The resolved job file.
    pub(crate) fn spec(&self, key: &JobKey) -> Result<String> {
        Ok(self.entry(key)?.record.spec.clone())
    }

    pub(crate) fn overview(&self) -> Overview {
        let brief = |(key, entry): (&JobKey, &Entry)| {
            let job = v1::Job { spec_json: String::new(), ..entry.job(key) };
            (entry.record.sched.state, job)
        };
        let waits = |(key, entry): (&JobKey, &Entry)| Some((key.clone(), entry.profile.input_wait_share()?));
        Overview {
            term: self.term(),
            workers: self.state.workers.values().cloned().collect(),
            jobs: self.entries.iter().map(brief).collect(),
            input_wait: self.entries.iter().filter_map(waits).collect(),
        }
    }

    pub(super) fn entry(&self, key: &JobKey) -> Result<&Entry> {
        self.entries.get(key).ok_or_else(|| self.not_found(key))
    }

    fn not_found(&self, key: &JobKey) -> Error {
        let names: Vec<_> =
            self.entries.keys().filter(|other| other.tenant == key.tenant).map(|other| other.job.as_str()).collect();
        let error = code::JOB_NOT_FOUND.error(format!("no job `{}` of tenant `{}`", key.job, key.tenant));
        if names.is_empty() { error } else { error.hint(suggest::did_you_mean(key.job.as_str(), names)) }
    }
}
