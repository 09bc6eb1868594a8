//! The numbers of one task: where it is, how fast, how long still.

use std::time::Duration;

use pleach_base::human;
use pleach_proto::v1;

/// Weight of the newest step in the smoothed time of a step.
const SMOOTHING: f64 = 0.2;

/// What is known of a task's progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) step: u64,
    pub(crate) total: u64,
    epoch: f64,
    loss: f64,
    grad_norm: Option<f64>,
    learning_rate: f64,
    tokens_per_second: f64,
    seconds_per_step: Option<f64>,
    workers: usize,
    skipped: bool,
}

impl Meter {
    /// Takes over a snapshot, as far as it is news.
    pub(crate) fn snapshot(&mut self, task: &v1::TaskStatus, workers: usize) {
        self.workers = workers;
        if task.step >= self.step {
            self.step = task.step;
            self.total = task.total_steps.max(self.total);
            self.epoch = task.epoch;
            self.loss = task.loss;
            self.learning_rate = task.learning_rate;
            self.tokens_per_second = task.tokens_per_second;
        }
    }

    /// Takes over a step.
    pub(crate) fn step(&mut self, row: &v1::StepRow) {
        self.step = row.step;
        self.total = row.total_steps;
        self.epoch = row.epoch;
        self.loss = row.loss;
        self.grad_norm = Some(row.grad_norm);
        self.learning_rate = row.learning_rate;
        self.workers = row.world as usize;
        self.skipped = row.skipped;
        if row.step_seconds > 0.0 {
            self.tokens_per_second = row.tokens as f64 / row.step_seconds;
            let before = self.seconds_per_step.unwrap_or(row.step_seconds);
            self.seconds_per_step = Some(before + SMOOTHING * (row.step_seconds - before));
        }
    }

    /// Time to the last step, once a step was seen.
    pub(crate) fn eta(&self) -> Option<Duration> {
        let left = self.total.checked_sub(self.step)? as f64;
        Duration::try_from_secs_f64(left * self.seconds_per_step?).ok()
    }

    /// `loss 2.3456  tokens/s 1,234  eta 2m 05s  workers 2`.
    pub(crate) fn brief(&self) -> String {
        let eta = self.eta().map_or("?".into(), human::duration);
        let speed = human::count(self.tokens_per_second.max(0.0) as u64);
        let skipped = if self.skipped { "  skipped: not finite" } else { "" };
        format!("loss {:.4}  tokens/s {speed}  eta {eta}  workers {}{skipped}", self.loss, self.workers)
    }

    /// The whole line of a step.
    pub(crate) fn line(&self) -> String {
        let norm = self.grad_norm.map_or(String::new(), |norm| format!("grad_norm {norm:.3}  "));
        format!(
            "step {}/{}  epoch {:.2}  {norm}lr {:.2e}  {}",
            self.step,
            self.total,
            self.epoch,
            self.learning_rate,
            self.brief()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, seconds: f64) -> v1::StepRow {
        v1::StepRow {
            step,
            total_steps: 10,
            epoch: 0.5,
            loss: 1.25,
            grad_norm: 0.5,
            learning_rate: 2e-4,
            tokens: 1_000,
            step_seconds: seconds,
            world: 2,
            ..Default::default()
        }
    }

    #[test]
    fn a_step_line_tells_speed_and_time_left() {
        let mut meter = Meter::default();
        assert_eq!(meter.eta(), None);
        meter.step(&row(4, 2.0));
        assert_eq!(
            meter.line(),
            "step 4/10  epoch 0.50  grad_norm 0.500  lr 2.00e-4  loss 1.2500  tokens/s 500  eta 12.0 s  workers 2"
        );
        meter.step(&row(5, 1.0));
        assert_eq!(meter.eta(), Some(Duration::from_secs(9)), "one fast step moves the estimate by a fifth");
    }

    #[test]
    fn an_older_snapshot_does_not_set_the_meter_back() {
        let mut meter = Meter::default();
        meter.step(&row(4, 2.0));
        meter.snapshot(&v1::TaskStatus { step: 3, loss: 9.0, ..Default::default() }, 3);
        assert_eq!((meter.step, meter.workers), (4, 3));
        assert!(meter.line().contains("loss 1.2500"));
    }
}
