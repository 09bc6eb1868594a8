//! What came out, for people and as JSON.

use std::fmt::Write;

use pleach_base::human;
use serde::Serialize;

use super::check::{Epoch, Finding, Made};
use super::data::Rows;

/// Lines of a kind that are shown to people; JSON has all that are remembered.
const SHOWN: usize = 20;

/// The audit of a job.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) job: String,
    pub(crate) holds: bool,
    pub(crate) tasks: Vec<Task>,
}

/// The audit of a task.
#[derive(Debug, Serialize)]
pub(crate) struct Task {
    pub(crate) task: String,
    pub(crate) holds: bool,
    dataset_digest: String,
    usable_rows: u64,
    malformed_rows: u64,
    /// The first thousand: `file:line: why`.
    malformed: Vec<String>,
    /// The newest recorded step.
    last_step: u64,
    /// Why the dataset is not the one that was trained on.
    dataset_changed: Option<String>,
    epochs: Vec<Epoch>,
}

impl Task {
    pub(super) fn new(
        name: &str,
        rows: &Rows,
        last_step: u64,
        epochs: Vec<Epoch>,
        dataset_changed: Option<String>,
        holds: bool,
    ) -> Self {
        let dataset = &rows.dataset;
        Self {
            task: name.to_owned(),
            holds,
            dataset_digest: dataset.digest().to_owned(),
            usable_rows: dataset.len(),
            malformed_rows: dataset.bad_count(),
            malformed: dataset.bad_rows().iter().map(ToString::to_string).collect(),
            last_step,
            dataset_changed,
            epochs,
        }
    }
}

impl Report {
    /// The report in sentences.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for task in &self.tasks {
            let _ = writeln!(
                text,
                "{}/{}: {} usable rows, {} malformed, step {} is the newest on record",
                self.job,
                task.task,
                human::count(task.usable_rows),
                human::count(task.malformed_rows),
                task.last_step
            );
            lines(&mut text, &task.malformed, |row| format!("malformed and skipped: {row}"));
            if let Some(changed) = &task.dataset_changed {
                let _ = writeln!(text, "  does not hold: {changed}");
            }
            task.epochs.iter().for_each(|epoch| epoch_text(&mut text, epoch));
        }
        text
    }
}

fn epoch_text(text: &mut String, epoch: &Epoch) {
    let verdict = match (epoch.holds, epoch.finished) {
        (true, true) => format!("every usable row was trained exactly once, {} rows", human::count(epoch.rows)),
        (true, false) => format!("unfinished; so far {} rows, none twice", human::count(epoch.rows)),
        (false, _) => format!("DOES NOT HOLD; {} rows are proven", human::count(epoch.rows)),
    };
    let made: Vec<_> = epoch.made_by.iter().take(SHOWN).map(made).collect();
    let more = if epoch.made_by.len() > SHOWN { ", ..." } else { "" };
    let _ = writeln!(
        text,
        "  epoch {}: {verdict} ({} of {} steps; {}{more})",
        epoch.epoch,
        epoch.steps,
        epoch.of_steps,
        made.join(", ")
    );
    lines(text, &epoch.findings, |finding| format!("  does not hold: {}", sentence(finding)));
    if epoch.more_findings > 0 {
        let _ = writeln!(text, "    and {} more", epoch.more_findings);
    }
    lines(text, &epoch.superseded, |row| {
        format!(
            "  superseded: the record of step {} by generation {} of term {}",
            row.step, row.fence.generation, row.fence.term
        )
    });
    lines(text, &epoch.not_finite, |step| {
        format!("  step {step} was not finite: its rows were fed, the update was left out")
    });
}

fn made(made: &Made) -> String {
    let Made { fence, from, to } = made;
    let steps = if from == to { format!("step {from}") } else { format!("steps {from} to {to}") };
    format!("{steps} by generation {} of term {}", fence.generation, fence.term)
}

fn sentence(finding: &Finding) -> String {
    let Finding { step, to, lane, what } = finding;
    let at = match (step, to, lane) {
        (Some(step), Some(to), _) => format!("steps {step} to {to}: "),
        (Some(step), None, Some(lane)) => format!("step {step}, lane {lane}: "),
        (Some(step), None, None) => format!("step {step}: "),
        _ => String::new(),
    };
    format!("{at}{what}")
}

fn lines<T>(text: &mut String, items: &[T], line: impl Fn(&T) -> String) {
    for item in items.iter().take(SHOWN) {
        let _ = writeln!(text, "  {}", line(item));
    }
    if items.len() > SHOWN {
        let _ = writeln!(text, "    and {} more", items.len() - SHOWN);
    }
}
