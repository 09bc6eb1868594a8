//! Following a job: bars on a terminal, plain lines elsewhere, and one clear last line.

mod bars;
mod meter;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use pleach_base::code;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, JobState, WatchJobResponse};

use crate::client::Flow;
use crate::{fail, out, view};

use bars::Bars;
use meter::Meter;

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// They are what the command is for.
    Out,
    /// They accompany it.
    Err,
}

/// What is shown besides steps, evaluations and changes of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Events such as `WorkerLost`.
    pub(crate) events: bool,
    /// Log lines of workers below `WARN`.
    pub(crate) all_logs: bool,
}

/// Events that say what the job's change of state says too.
const ECHOES: &[&str] = &["Submitted", "Running", "Succeeded", "Failed", "Cancelled", "GenerationEnded"];

/// Shows the updates of one job.
pub(crate) struct Follower {
    stream: Stream,
    shown: Shown,
    bars: Option<Bars>,
    meters: BTreeMap<String, Meter>,
    job: Option<v1::Job>,
    /// Where steps are written as JSON too, a line each.
    steps: Option<File>,
}

impl Follower {
    /// Bars when the stream is a terminal, lines otherwise.
    pub(crate) fn new(stream: Stream, shown: Shown) -> Self {
        let terminal = match stream {
            Stream::Out => std::io::stdout().is_terminal(),
            Stream::Err => std::io::stderr().is_terminal(),
        };
        let bars = terminal.then(|| Bars::new(stream));
        Self { stream, shown, bars, meters: BTreeMap::new(), job: None, steps: None }
    }

    /// Also writes every step into `file`, a line of JSON each.
    pub(crate) fn writing_steps(mut self, file: Option<File>) -> Self {
        self.steps = file;
        self
    }

    /// Shows one update; stops after the job's end.
    pub(crate) fn update(&mut self, update: WatchJobResponse) -> Flow {
        match update.update {
            Some(Update::Job(job)) => return self.job(job),
            Some(Update::Step(row)) => self.step(&row),
            Some(Update::Eval(row)) => self.say(&format!(
                "{}  evaluation at step {}  {}  ({} rows in {:.1} s)",
                row.task,
                row.step,
                view::metrics(&row),
                row.samples,
                row.seconds
            )),
            Some(Update::Event(event)) if self.shown.events && !ECHOES.contains(&event.kind.as_str()) => {
                self.say(&event_line(&event));
            }
            Some(Update::Log(line)) if self.shown.all_logs || is_warning(&line) => self.say(&log_line(&line)),
            _ => {}
        }
        Flow::More
    }

    /// A line above the bars.
    pub(crate) fn say(&self, text: &str) {
        match (&self.bars, self.stream) {
            (Some(bars), _) => bars.say(text),
            (None, Stream::Err) => out::note(text),
            // A closed pipe ends the watch at the next update of the job, no sooner is needed.
            (None, Stream::Out) => {
                let _ = writeln!(anstream::stdout(), "{text}");
            }
        }
    }

    /// The newest state of the job that was seen.
    pub(crate) fn last(&self) -> Option<&v1::Job> {
        self.job.as_ref()
    }

    /// Removes the bars.
    pub(crate) fn clear(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.clear();
        }
    }

    fn job(&mut self, job: v1::Job) -> Flow {
        let before = self.job.as_ref();
        if before.is_none_or(|before| before.state != job.state || before.reason != job.reason) && !view::ended(&job) {
            self.say(&format!("{}: {} ({})", job.id, view::state(&job), reason(&job)));
        }
        for task in &job.tasks {
            self.meter(&task.name).snapshot(task, job.members.len());
            if let Some(bars) = &mut self.bars {
                bars.show(&task.name, &self.meters[&task.name]);
            }
        }
        let ended = view::ended(&job);
        self.job = Some(job);
        if ended { Flow::Stop } else { Flow::More }
    }

    fn step(&mut self, row: &v1::StepRow) {
        self.write_down(row);
        self.meter(&row.task).step(row);
        let meter = &self.meters[&row.task];
        match &mut self.bars {
            Some(bars) => bars.show(&row.task, meter),
            None => {
                let line = format!("{}  {}", row.task, meter.line());
                self.say(&line);
            }
        }
    }

    fn write_down(&mut self, row: &v1::StepRow) {
        let written = self.steps.as_mut().map(|file| writeln!(file, "{}", view::step(row)));
        if let Some(Err(error)) = written {
            // Training is worth more than its minutes.
            self.steps = None;
            self.say(&format!("steps are no longer written down: {error}"));
        }
    }

    fn meter(&mut self, task: &str) -> &mut Meter {
        self.meters.entry(task.to_owned()).or_default()
    }
}

fn reason(job: &v1::Job) -> &str {
    if job.reason.is_empty() { "no reason given" } else { &job.reason }
}

fn is_warning(line: &v1::LogLine) -> bool {
    matches!(line.level.to_ascii_uppercase().as_str(), "WARN" | "ERROR")
}

/// `12:03:44 WARN worker-0: text`.
pub(crate) fn log_line(line: &v1::LogLine) -> String {
    format!("{} {:5} {}: {}", view::time_of_day(line.unix_ms), line.level.to_uppercase(), line.worker, line.text)
}

/// `12:03:44 WorkerLost: text`.
pub(crate) fn event_line(event: &v1::Event) -> String {
    format!("{} {}: {}", view::time_of_day(event.unix_ms), event.kind, event.message)
}

/// The last line about a job that ended, and the exit code that it means. `more` says where to look after a failure.
/// A failed job ends with 1, whatever the kind of its error.
pub(crate) fn conclude(job: &v1::Job, more: &str) -> ExitCode {
    let tasks: Vec<_> = job
        .tasks
        .iter()
        .map(|task| format!("{} step {}/{} loss {:.4}", task.name, task.step, task.total_steps, task.loss))
        .collect();
    let line = format!("{} {} after {} restarts: {}", job.id, view::state(job), job.restarts, tasks.join(", "));
    match job.state() {
        JobState::Succeeded => {
            out::note(line);
            ExitCode::SUCCESS
        }
        JobState::Cancelled => {
            out::note(format!("{line} ({})", reason(job)));
            ExitCode::from(fail::FAILED)
        }
        _ => {
            let at = code::find(&job.error_code).unwrap_or(code::INTERNAL);
            fail::show(&at.error(format!("job {} failed: {}", job.id, reason(job))).hint(more));
            ExitCode::from(fail::FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState) -> WatchJobResponse {
        let job = v1::Job { id: "j".into(), state: state.into(), ..Default::default() };
        WatchJobResponse { seq: 0, update: Some(Update::Job(job)) }
    }

    #[test]
    fn following_stops_when_the_job_ends_and_not_before() {
        let mut follower = Follower::new(Stream::Err, Shown { events: true, all_logs: false });
        for state in [JobState::Queued, JobState::Running, JobState::Stopping] {
            assert_eq!(follower.update(job(state)), Flow::More);
        }
        assert_eq!(follower.update(job(JobState::Failed)), Flow::Stop);
        assert_eq!(follower.last().map(view::state), Some("failed"));
    }

    #[test]
    fn every_step_is_a_line_of_json_with_all_digits_of_its_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let file = File::create(&path).unwrap();
        let quiet = Shown { events: false, all_logs: false };
        let mut follower = Follower::new(Stream::Err, quiet).writing_steps(Some(file));
        for (step, loss) in [(1, 1.234_567_890_125), (2, 0.5)] {
            let row = v1::StepRow { task: "a".into(), step, loss, tokens: 7, unix_ms: 9, ..Default::default() };
            let update = Some(Update::Step(row));
            assert_eq!(follower.update(WatchJobResponse { seq: step, update }), Flow::More);
        }
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["loss"], 1.234_567_890_125);
        assert_eq!((&lines[1]["step"], &lines[1]["tokens"], &lines[1]["unix_ms"]), (&2.into(), &7.into(), &9.into()));
    }

    #[test]
    fn lines_of_logs_and_events_carry_time_level_and_source() {
        let line = v1::LogLine { unix_ms: 1_000, worker: "w0".into(), level: "warn".into(), text: "slow".into() };
        assert_eq!(log_line(&line), "00:00:01 WARN  w0: slow");
        let event =
            v1::Event { unix_ms: 2_000, kind: "WorkerLost".into(), message: "w1 is gone".into(), ..Default::default() };
        assert_eq!(event_line(&event), "00:00:02 WorkerLost: w1 is gone");
    }
}
