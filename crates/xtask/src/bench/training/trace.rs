//! A training as it was seen from outside, and the numbers that are compared.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Steps of each job that are not counted: libraries settle in them.
pub(in crate::bench) const WARM_UP: usize = 3;

/// One optimiser step of one job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::bench) struct Step {
    pub(in crate::bench) loss: f64,
    /// Real tokens; padding is not counted.
    pub(in crate::bench) tokens: u64,
    /// What the step took by the trainer's own account, where it gives one.
    pub(in crate::bench) seconds: Option<f64>,
    /// Unix time at which it ended, in seconds.
    pub(in crate::bench) end: f64,
}

/// One command from its start to its end.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Trace {
    /// Unix time of the start, in seconds.
    pub(in crate::bench) begun: f64,
    pub(in crate::bench) wall: f64,
    pub(in crate::bench) peak_bytes: u64,
    pub(in crate::bench) gpu_mib: Option<u64>,
    pub(in crate::bench) jobs: Vec<Vec<Step>>,
}

/// The numbers of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::bench) struct Run {
    pub(in crate::bench) tokens_per_second: f64,
    pub(in crate::bench) wall_seconds: f64,
    /// Start of the command to the end of the first step, less one steady step.
    pub(in crate::bench) start_up_seconds: f64,
    pub(in crate::bench) peak_mib: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::bench) gpu_mib: Option<u64>,
}

impl Run {
    /// Of commands that ran one after the other.
    pub(super) fn of(traces: &[Trace]) -> Self {
        let speeds: Vec<_> = traces.iter().map(Trace::steady).collect();
        let sum = |of: fn(&Steady) -> f64| speeds.iter().map(of).sum::<f64>();
        let (tokens, seconds) = (sum(|steady| steady.tokens), sum(|steady| steady.seconds));
        let start_up = traces.iter().zip(&speeds).map(|(trace, steady)| trace.first_end() - trace.begun - steady.step);
        let peak = traces.iter().map(|trace| trace.peak_bytes).max().unwrap_or_default();
        Self {
            tokens_per_second: tokens / seconds,
            wall_seconds: traces.iter().map(|trace| trace.wall).sum(),
            start_up_seconds: start_up.sum(),
            peak_mib: (peak >> 20) as f64,
            gpu_mib: traces.iter().filter_map(|trace| trace.gpu_mib).max(),
        }
    }
}

/// What is left of a trace without its first steps.
struct Steady {
    tokens: f64,
    seconds: f64,
    /// Seconds of a step of every job.
    step: f64,
}

impl Trace {
    fn by_end(&self) -> Vec<Step> {
        let mut steps: Vec<_> = self.jobs.iter().flatten().copied().collect();
        steps.sort_by(|a, b| a.end.total_cmp(&b.end));
        steps
    }

    /// When every job has made its first step.
    fn first_end(&self) -> f64 {
        self.jobs.iter().filter_map(|job| job.first()).map(|step| step.end).fold(0.0, f64::max)
    }

    fn steady(&self) -> Steady {
        let (steps, skip) = (self.by_end(), WARM_UP * self.jobs.len());
        let (Some(last), Some(before)) = (steps.last(), steps.get(skip.saturating_sub(1))) else {
            return Steady { tokens: 0.0, seconds: 0.0, step: 0.0 };
        };
        let counted = steps.len().saturating_sub(skip);
        let tokens = steps.iter().skip(skip).map(|step| step.tokens as f64).sum();
        let seconds = last.end - before.end;
        Steady { tokens, seconds, step: seconds * self.jobs.len() as f64 / counted.max(1) as f64 }
    }
}

/// How far two trainings of the same jobs are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::bench) struct Agreement {
    /// Steps that were compared, of all jobs.
    pub(in crate::bench) steps: usize,
    /// Largest difference of losses of first steps.
    pub(in crate::bench) first: f64,
    /// Largest difference of any step's losses.
    pub(in crate::bench) largest: f64,
    pub(in crate::bench) tolerance: f64,
}

/// Compares losses and tokens step by step.
///
/// # Errors
/// When the sides did not train on the same, or their losses are further apart than `tolerance`.
pub(super) fn agree(baseline: &[Trace], ours: &[Trace], tolerance: f64) -> Result<Agreement> {
    let jobs = |traces: &[Trace]| traces.iter().flat_map(|trace| trace.jobs.clone()).collect::<Vec<_>>();
    let (baseline, ours) = (jobs(baseline), jobs(ours));
    if baseline.len() != ours.len() {
        bail!("the sides trained {} and {} jobs", baseline.len(), ours.len());
    }
    let mut found = Agreement { steps: 0, first: 0.0, largest: 0.0, tolerance };
    for (job, (theirs, ours)) in baseline.iter().zip(&ours).enumerate() {
        if theirs.len() != ours.len() {
            bail!("job {job}: the sides made {} and {} steps", theirs.len(), ours.len());
        }
        for (number, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
            let step = number + 1;
            if theirs.tokens != ours.tokens {
                bail!("job {job}, step {step}: the sides saw {} and {} tokens", theirs.tokens, ours.tokens);
            }
            let apart = (theirs.loss - ours.loss).abs();
            if !apart.is_finite() || apart > tolerance {
                bail!(
                    "job {job}, step {step}: losses are {} and {}, further apart than {tolerance}",
                    theirs.loss,
                    ours.loss
                );
            }
            found.steps += 1;
            found.largest = found.largest.max(apart);
            if number == 0 {
                found.first = found.first.max(apart);
            }
        }
    }
    Ok(found)
}

/// The middle one, or the mean of the two in the middle.
pub(in crate::bench) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(begun: f64, jobs: &[&[(f64, u64, f64)]]) -> Trace {
        let step = |&(loss, tokens, end): &(f64, u64, f64)| Step { loss, tokens, seconds: None, end };
        let jobs = jobs.iter().map(|job| job.iter().map(step).collect()).collect();
        Trace { begun, wall: 9.0, peak_bytes: 5 << 20, gpu_mib: None, jobs }
    }

    #[test]
    fn the_first_steps_count_for_start_up_and_not_for_speed() {
        let steps = [(2.0, 10, 13.0), (2.0, 10, 14.0), (2.0, 10, 14.5), (2.0, 30, 15.0), (2.0, 10, 15.5)];
        let run = Run::of(&[trace(10.0, &[&steps])]);
        assert_eq!((run.tokens_per_second, run.start_up_seconds), (40.0, 2.5));
        assert_eq!((run.wall_seconds, run.peak_mib), (9.0, 5.0));
        let twice = Run::of(&[trace(10.0, &[&steps]), trace(10.0, &[&steps])]);
        assert_eq!((twice.tokens_per_second, twice.wall_seconds, twice.peak_mib), (40.0, 18.0, 5.0));
    }

    #[test]
    fn jobs_that_run_together_share_the_time() {
        let one = [(1.0, 1, 1.0), (1.0, 1, 2.0), (1.0, 1, 3.0), (1.0, 8, 4.0), (1.0, 8, 5.0)];
        let run = Run::of(&[trace(0.0, &[&one, &one])]);
        assert_eq!((run.tokens_per_second, run.start_up_seconds), (16.0, 0.0));
    }

    #[test]
    fn losses_are_compared_step_by_step() {
        let left = [trace(0.0, &[&[(1.0, 4, 1.0), (0.5, 4, 2.0)]])];
        let right = |loss, tokens| [trace(0.0, &[&[(1.0, 4, 1.0), (loss, tokens, 2.0)]])];
        let found = agree(&left, &right(0.5 + 5e-5, 4), 1e-4).unwrap();
        assert_eq!((found.steps, found.first), (2, 0.0));
        assert!(found.largest > 4e-5 && found.largest < 6e-5);
        for (loss, tokens) in [(0.5002, 4), (0.5, 5), (f64::NAN, 4)] {
            assert!(agree(&left, &right(loss, tokens), 1e-4).is_err(), "{loss} {tokens}");
        }
        assert!(agree(&left, &[], 1e-4).is_err());
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
