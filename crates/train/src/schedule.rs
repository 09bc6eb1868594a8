//! The learning rate over time, by the formulas of Hugging Face's schedulers.

use pleach_spec::job::{ScheduleName, ScheduleSpec};

/// Factor on the peak learning rate for the update that turns step `step` into `step + 1` (`step` counts from zero).
///
/// With a warm-up the first update has rate zero, as in the schedulers that this follows.
#[must_use]
pub fn factor(spec: &ScheduleSpec, step: u64, total_steps: u64) -> f64 {
    let warmup = spec.warmup_steps;
    if step < warmup {
        return step as f64 / warmup.max(1) as f64;
    }
    let rest = total_steps.saturating_sub(warmup).max(1) as f64;
    match spec.name {
        ScheduleName::Constant => 1.0,
        ScheduleName::Linear => (total_steps.saturating_sub(step) as f64 / rest).max(0.0),
        ScheduleName::Cosine => {
            let progress = (step - warmup) as f64 / rest;
            (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::constant_warm(ScheduleName::Constant, 4, 2, 0.5)]
    #[case::constant(ScheduleName::Constant, 4, 9, 1.0)]
    #[case::first_update_of_a_warm_up_is_zero(ScheduleName::Linear, 2, 0, 0.0)]
    #[case::linear_peak(ScheduleName::Linear, 2, 2, 1.0)]
    #[case::linear_half(ScheduleName::Linear, 2, 6, 0.5)]
    #[case::linear_last(ScheduleName::Linear, 2, 9, 0.125)]
    #[case::cosine_peak(ScheduleName::Cosine, 2, 2, 1.0)]
    #[case::cosine_half(ScheduleName::Cosine, 2, 6, 0.5)]
    #[case::cosine_quarter(ScheduleName::Cosine, 2, 4, 0.853_553_390_593_273_8)]
    #[case::cosine_end(ScheduleName::Cosine, 2, 10, 0.0)]
    #[case::no_warm_up(ScheduleName::Linear, 0, 0, 1.0)]
    fn ten_steps(#[case] name: ScheduleName, #[case] warmup_steps: u64, #[case] step: u64, #[case] expected: f64) {
        let got = factor(&ScheduleSpec { name, warmup_steps }, step, 10);
        assert!((got - expected).abs() < 1e-12, "{got} instead of {expected}");
    }
}
