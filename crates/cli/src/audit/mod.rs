//! The proof that each row of an epoch was trained exactly once: what the ranks recorded of what they were fed, held
//! against the dataset as it is read here.
//!
//! Not here: the trainer's batches. Which rows a lane should be fed follows from the job and the dataset alone
//! ([`pleach_data::Order`]); that these make up the epoch is checked as a set of rows.

mod check;
mod data;
mod export;
mod remote;
mod report;
mod subject;

use pleach_base::{Result, TaskName, code};
use pleach_spec::job::TaskSpec;
use pleach_store::{EntryKind, Ledger, LogEntry, TaskStore};
use serde_json::Value;

use check::{Cut, Finding};
use data::Rows;
pub(crate) use data::understood;
pub(crate) use export::Export;
pub(crate) use report::{Report, Task};
pub(crate) use subject::Subject;

/// Audits the tasks of a job, or the one of this name.
///
/// # Errors
/// When the records or the dataset cannot be read, or no task has this name. What does not hold is in the report.
pub(crate) async fn run(subject: &Subject, only: Option<&str>, export: &mut Option<Export>) -> Result<Report> {
    let mut tasks = Vec::new();
    for (index, task) in subject.job.spec.tasks.iter().enumerate() {
        if only.is_none_or(|only| only == task.name) {
            tasks.push(one(subject, index, task, export).await?);
        }
    }
    if tasks.is_empty() {
        let names: Vec<_> = subject.job.spec.tasks.iter().map(|task| task.name.as_str()).collect();
        let wanted = only.unwrap_or_default();
        return Err(code::BAD_VALUE
            .error(format!("--task {wanted}: the job has no such task"))
            .hint(format!("its tasks are {}", names.join(", "))));
    }
    Ok(Report { job: subject.id.clone(), holds: tasks.iter().all(|task| task.holds), tasks })
}

async fn one(subject: &Subject, index: usize, spec: &TaskSpec, export: &mut Option<Export>) -> Result<Task> {
    // Reading and downloading data blocks.
    let rows = tokio::task::block_in_place(|| data::open(subject, index, spec))?;
    let store = subject.store(&TaskName::from(spec.name.as_str()))?;
    let log = store.entries().await?;
    let (commits, torn) = recorded(subject, &spec.name);
    let durable = log.iter().rfind(|entry| entry.kind == EntryKind::Step);
    let known = durable.and_then(|entry| entry.step).into_iter().chain(commits.last().map(|row| row.step)).max();
    let done = if subject.done { rows.order.plan().total_steps() } else { 0 };
    let last = known.map_or(0, |step| step.0).max(done);

    let mut epochs = Vec::new();
    let mut fence = None;
    for epoch in (0..).take_while(|epoch| rows.order.steps(*epoch).first < last) {
        let mut ledger = store.ledger_of(&log, epoch).await?;
        let mut torn: Vec<_> = torn.iter().filter(|(of, _)| *of == epoch).map(|(_, finding)| finding.clone()).collect();
        for row in commits.superseded().chain(commits.rows()).filter(|row| row.epoch == epoch) {
            if let Err(error) = ledger.take(row.clone()) {
                torn.push(Finding::at(row.step.0, error.to_string()));
            }
        }
        let mut found = check::epoch(&rows.order, epoch, last, &ledger, &mut fence, &mut |fed| match export {
            Some(export) => export.push(&spec.name, fed),
            None => Ok(()),
        })?;
        torn.into_iter().for_each(|finding| found.find(finding));
        name_rows(&mut found, &rows);
        epochs.push(found);
    }
    let changed = changed(&store, durable, &rows).await;
    let holds = changed.is_none() && epochs.iter().all(|epoch| epoch.holds);
    Ok(Task::new(&spec.name, &rows, last, epochs, changed, holds))
}

/// What the coordinator keeps of a task's records: those that count, those that do not, and by epoch what contradicts
/// itself.
fn recorded(subject: &Subject, task: &str) -> (Ledger, Vec<(u64, Finding)>) {
    let (mut ledger, mut torn) = (Ledger::default(), Vec::new());
    for row in subject.commits.iter().filter(|row| row.task.as_str() == task) {
        if let Err(error) = ledger.take(row.clone()) {
            torn.push((row.epoch, Finding::at(row.step.0, error.to_string())));
        }
    }
    (ledger, torn)
}

/// Says where the first rows lie that nothing proves to have been trained.
fn name_rows(epoch: &mut check::Epoch, rows: &Rows) {
    if epoch.unproven == 0 {
        return;
    }
    let places = epoch.unproven_rows.iter().map(|row| match rows.dataset.place(*row) {
        Ok(place) => format!("{row} ({place})"),
        Err(_) => row.to_string(),
    });
    let named = places.collect::<Vec<_>>().join(", ");
    let what = format!("{} usable rows are in no step that is proven, the first of them {named}", epoch.unproven);
    epoch.find(Finding { step: None, to: None, lane: None, what });
}

/// Whether the trainer read other rows than are here now, by the digest beside its newest step. Retention may have
/// taken that step meanwhile: then there is nothing to compare with.
async fn changed(store: &TaskStore, durable: Option<&LogEntry>, rows: &Rows) -> Option<String> {
    let manifest = store.manifest(durable?).await.ok()?;
    let trained = manifest.meta.get("dataset_digest").and_then(Value::as_str)?;
    let here = rows.dataset.digest();
    (trained != here)
        .then(|| format!("the dataset is not the one that was trained on: its digest is {here}, then {trained}"))
}
