//! What a coordinator should bear, and whether it did.

use std::fmt;

use serde::Serialize;

use crate::control::{Report, State};

/// A bound, and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What is bounded.
    pub what: &'static str,
    /// Not more than this, or not less.
    pub wanted: f64,
    /// What came out.
    pub got: f64,
    /// Whether that is enough.
    pub met: bool,
}

/// The bounds for a fleet of 10,000 workers that beat once a second, held to whatever fleet was measured.
#[must_use]
pub fn goals(report: &Report) -> Vec<Goal> {
    let most = |what, wanted, got| Goal { what, wanted, got, met: got <= wanted };
    let alone = &report.heartbeats;
    let mut goals = vec![
        most("cores of the coordinator, heartbeats alone, at most", 1.0, alone.cores),
        most("p99 of heartbeats alone in ms, at most", 20.0, alone.p99_ms),
    ];
    goals.extend(report.commits.as_ref().map(|commits| {
        let (wanted, got) = (if report.state == State::Redb { 2000.0 } else { 500.0 }, commits.per_second);
        Goal { what: "task commits a second, at least", wanted, got, met: got >= wanted }
    }));
    goals
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, got, met } = self;
        write!(f, "{} {what} {wanted}: {got:.2}", if *met { "met   " } else { "missed" })
    }
}
