//! One bar a task, for terminals.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Stream;
use super::meter::Meter;

/// The bars of a job's tasks.
pub(super) struct Bars {
    all: MultiProgress,
    by_task: BTreeMap<String, ProgressBar>,
    style: ProgressStyle,
}

impl Bars {
    pub(super) fn new(stream: Stream) -> Self {
        let target = match stream {
            Stream::Out => ProgressDrawTarget::stdout(),
            Stream::Err => ProgressDrawTarget::stderr(),
        };
        let style = ProgressStyle::with_template("{prefix:12.bold} {bar:30.cyan/dim} {pos}/{len}  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { all: MultiProgress::with_draw_target(target), by_task: BTreeMap::new(), style }
    }

    pub(super) fn show(&mut self, task: &str, meter: &Meter) {
        let bar = self.by_task.entry(task.to_owned()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(meter.total));
            bar.set_style(self.style.clone());
            bar.set_prefix(task.to_owned());
            bar
        });
        bar.set_length(meter.total);
        bar.set_position(meter.step);
        bar.set_message(meter.brief());
    }

    pub(super) fn say(&self, text: &str) {
        // A terminal that is gone takes no lines; the job is not concerned.
        let _ = self.all.println(text);
    }

    pub(super) fn clear(self) {
        let _ = self.all.clear();
    }
}
