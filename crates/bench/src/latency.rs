//! How long answers take: counts of equal steps, so that thousands of workers note theirs without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Width of a step.
const STEP: Duration = Duration::from_micros(20);
/// Longer ones are counted in the last step.
const STEPS: usize = 250_000;

/// Counts of durations up to 5 s.
pub(crate) struct Latency(Vec<AtomicU64>);

impl Latency {
    pub(crate) fn new() -> Self {
        Self((0..STEPS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn note(&self, took: Duration) {
        let step = usize::try_from(took.as_nanos() / STEP.as_nanos()).unwrap_or(STEPS).min(STEPS - 1);
        self.0[step].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes all counts out.
    pub(crate) fn take(&self) -> Counts {
        Counts(self.0.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect())
    }
}

/// What was counted.
pub(crate) struct Counts(Vec<u64>);

impl Counts {
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Milliseconds that this share of the answers did not exceed; 0 when there were none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let step = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted.max(1)
        });
        step.map_or(0.0, |step| (step + 1) as f64 * STEP.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds_of_their_step() {
        let latency = Latency::new();
        (1..=99).for_each(|_| latency.note(Duration::from_micros(1010)));
        latency.note(Duration::from_secs(60));
        let counts = latency.take();
        assert_eq!(counts.total(), 100);
        assert!((counts.quantile(0.5) - 1.02).abs() < 1e-9);
        assert!((counts.quantile(0.99) - 1.02).abs() < 1e-9);
        assert!((counts.quantile(1.0) - 5000.0).abs() < 1e-9);
        assert_eq!(latency.take().total(), 0);
        assert!(latency.take().quantile(0.5).abs() < 1e-9);
    }
}
