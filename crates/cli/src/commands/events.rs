//! `pleach events`: the history of a job in sentences. Recorded steps are folded into ranges.

use std::collections::BTreeMap;

use pleach_base::{Error, Result, ResultExt, code};
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, WatchJobResponse};
use serde::Serialize;

use crate::args::{Events, Format, Global};
use crate::client::Flow;
use crate::{out, view};

pub(super) async fn run(global: &Global, args: &Events) -> Result<()> {
    let mut client = super::connect(global).await?;
    let commits = client.commits(&args.job).await?;
    let (mut events, mut seen, mut until) = (Vec::new(), 0, None);
    let past = |update: WatchJobResponse| {
        if let Some(Update::Job(job)) = &update.update {
            until.get_or_insert(job.last_seq);
        }
        seen = update.seq.max(seen);
        events.extend(event(update));
        if until.is_some_and(|until| seen >= until) { Flow::Stop } else { Flow::More }
    };
    client.watch(&args.job, 0, past).await?;
    let lines = history(events, &commits);
    if !args.follow {
        return out::emit(args.output.output, &lines, || lines.iter().map(Line::text).collect::<Vec<_>>().join("\n"));
    }
    let mut follower = Follower { json: args.output.output != Format::Table, folds: Folds::default(), failed: None };
    follower.say(lines);
    client.watch(&args.job, seen, |update| follower.update(update)).await?;
    let rest = follower.folds.close();
    follower.say(rest);
    follower.failed.map_or(Ok(()), Err)
}

/// A line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    unix_ms: i64,
    kind: String,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    worker: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    steps: Option<Steps>,
}

/// Steps in a row that one generation made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Steps {
    task: String,
    generation: u64,
    world: u32,
    from: u64,
    to: u64,
    /// Of these, whose update was left out.
    not_finite: u64,
}

impl Line {
    fn text(&self) -> String {
        format!("{} {}: {}", date_and_time(self.unix_ms), self.kind, self.message)
    }
}

fn event(update: WatchJobResponse) -> Option<Line> {
    let Some(Update::Event(v1::Event { unix_ms, kind, message, worker })) = update.update else { return None };
    Some(Line { unix_ms, kind, message, worker, steps: None })
}

/// Events, and between them what was recorded meanwhile. An event stays behind the one that was told before it.
fn history(events: Vec<Line>, commits: &[v1::CommitRecord]) -> Vec<Line> {
    let mut commits: Vec<_> = commits.iter().collect();
    commits.sort_by_key(|row| row.unix_ms);
    let mut commits = commits.into_iter().peekable();
    let (mut lines, mut folds) = (Vec::new(), Folds::default());
    for event in events {
        while let Some(row) = commits.next_if(|row| row.unix_ms <= event.unix_ms) {
            lines.extend(folds.add(commit(row), row.unix_ms));
        }
        lines.extend(folds.close());
        lines.push(event);
    }
    for row in commits {
        lines.extend(folds.add(commit(row), row.unix_ms));
    }
    lines.extend(folds.close());
    lines
}

fn commit(row: &v1::CommitRecord) -> Steps {
    let v1::CommitRecord { task, generation, world, step, skipped, .. } = row.clone();
    Steps { task, generation, world, from: step, to: step, not_finite: u64::from(skipped) }
}

fn trained(row: &v1::StepRow) -> Steps {
    let v1::StepRow { task, generation, world, step, skipped, .. } = row.clone();
    Steps { task, generation, world, from: step, to: step, not_finite: u64::from(skipped) }
}

/// The ranges that may still grow, by task.
#[derive(Debug, Default)]
struct Folds(BTreeMap<String, (Steps, i64)>);

impl Folds {
    /// Takes a step; gives the range that it does not continue.
    fn add(&mut self, step: Steps, unix_ms: i64) -> Option<Line> {
        let (open, at) = self.0.entry(step.task.clone()).or_insert_with(|| (step.clone(), unix_ms));
        let continues = (open.generation, open.world, open.to + 1) == (step.generation, step.world, step.from);
        let closed = if continues {
            open.to = step.to;
            open.not_finite += step.not_finite;
            None
        } else if *open == step {
            None
        } else {
            Some(range(std::mem::replace(open, step), *at))
        };
        *at = unix_ms;
        closed
    }

    fn close(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.0).into_values().map(|(steps, at)| range(steps, at)).collect()
    }
}

fn range(steps: Steps, unix_ms: i64) -> Line {
    let Steps { task, generation, world, from, to, not_finite } = &steps;
    let which = if from == to { format!("step {from} was") } else { format!("steps {from} to {to} were") };
    let workers = if *world == 1 { "1 worker".to_owned() } else { format!("{world} workers") };
    let left_out = match not_finite {
        0 => String::new(),
        count => format!("; of {count} the update was left out: something was not finite"),
    };
    let message = format!("{task}: {which} recorded by generation {generation} of {workers}{left_out}");
    Line { unix_ms, kind: "Recorded".to_owned(), message, worker: String::new(), steps: Some(steps) }
}

/// Says what comes, a line each.
struct Follower {
    json: bool,
    folds: Folds,
    failed: Option<Error>,
}

impl Follower {
    fn update(&mut self, update: WatchJobResponse) -> Flow {
        if let Some(Update::Step(row)) = &update.update {
            let closed = self.folds.add(trained(row), row.unix_ms);
            self.say(closed);
        } else if let Some(event) = event(update) {
            let mut lines = self.folds.close();
            lines.push(event);
            self.say(lines);
        }
        if self.failed.is_some() { Flow::Stop } else { Flow::More }
    }

    fn say(&mut self, lines: impl IntoIterator<Item = Line>) {
        for line in lines {
            let text = if self.json {
                serde_json::to_string(&line).or_code(code::INTERNAL, || "cannot write JSON".into())
            } else {
                Ok(line.text())
            };
            if let Err(error) = text.and_then(|text| out::data(&text)) {
                self.failed.get_or_insert(error);
            }
        }
    }
}

/// `2026-11-24 12:03:44` UTC, by the days of the proleptic Gregorian calendar in eras of 400 years from 0000-03-01.
fn date_and_time(unix_ms: i64) -> String {
    let days = unix_ms.div_euclid(86_400_000) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {}", view::time_of_day(unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, generation: u64, unix_ms: i64) -> v1::CommitRecord {
        v1::CommitRecord { task: "t".into(), step, generation, world: 2, unix_ms, ..Default::default() }
    }

    fn said(at: i64, kind: &str) -> Line {
        Line { unix_ms: at, kind: kind.into(), message: "m".into(), worker: String::new(), steps: None }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_795_564_800, "2026-11-25 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date_and_time(seconds * 1_000), text);
        }
    }

    #[test]
    fn steps_are_folded_between_events_and_where_a_generation_goes_back() {
        let commits = [row(1, 1, 10), row(2, 1, 20), row(3, 1, 30), row(3, 2, 50), row(4, 2, 60)];
        let lines = history(vec![said(5, "GangFormed"), said(40, "WorkerLost"), said(45, "GangFormed")], &commits);
        let text: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.message.as_str())).collect();
        assert_eq!(
            text,
            [
                ("GangFormed", "m"),
                ("Recorded", "t: steps 1 to 3 were recorded by generation 1 of 2 workers"),
                ("WorkerLost", "m"),
                ("GangFormed", "m"),
                ("Recorded", "t: steps 3 to 4 were recorded by generation 2 of 2 workers"),
            ]
        );
    }

    #[test]
    fn a_step_made_again_begins_a_new_range() {
        let lines = history(Vec::new(), &[row(7, 1, 1), row(8, 1, 2), row(8, 2, 3), row(9, 2, 4)]);
        let ranges: Vec<_> = lines.iter().map(|line| line.steps.clone().map(|steps| (steps.from, steps.to))).collect();
        assert_eq!(ranges, [Some((7, 8)), Some((8, 9))]);
    }
}
