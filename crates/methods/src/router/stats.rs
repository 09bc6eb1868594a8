//! What the sums of a step say of its routers.

use super::places::WEIGHT;
use crate::adapter::Routing;
use crate::plan::Plan;

/// Below this part of the way from a full collapse to perfect balance a router has collapsed.
const COLLAPSED: f64 = 0.1;

/// Of one router: slots and mean share of each expert, tokens.
struct Row<'a> {
    slots: &'a [f64],
    shares: &'a [f64],
    tokens: f64,
}

impl Row<'_> {
    /// How many experts share the work: the exponential of the entropy of their parts of it. Sparse routers are judged by
    /// slots, those that ask every expert for every token by shares.
    fn effective(&self) -> f64 {
        let parts = if self.is_dense() { self.shares } else { self.slots };
        let sum: f64 = parts.iter().sum();
        let entropy = |part: &f64| if *part > 0.0 { -(part / sum) * (part / sum).ln() } else { 0.0 };
        parts.iter().map(entropy).sum::<f64>().exp()
    }

    fn is_dense(&self) -> bool {
        self.slots.iter().all(|slots| *slots == self.tokens)
    }

    /// Experts that a token is given to.
    fn slots_a_token(&self) -> f64 {
        if self.is_dense() { 1.0 } else { self.slots.iter().sum::<f64>() / self.tokens.max(1.0) }
    }

    fn has_collapsed(&self) -> bool {
        let (least, most) = (self.slots_a_token(), self.slots.len() as f64);
        least < most && self.effective() < least + COLLAPSED * (most - least)
    }

    /// The largest part of the tokens, or of the shares, that one expert has.
    fn largest(&self) -> f64 {
        let parts = if self.is_dense() { self.shares } else { self.slots };
        parts.iter().fold(0.0, |largest, part| part.max(largest)) / self.tokens.max(1.0)
    }
}

/// Metrics and warnings of `sums`, row by row in the order of the planned routers. `experts` are their names.
pub(crate) fn of(plan: &Plan, experts: &[String], sums: &[f64], width: usize) -> Routing {
    let places: Vec<_> = plan.tensors.iter().filter(|tensor| tensor.part == WEIGHT).collect();
    let count = experts.len();
    let rows: Vec<Row<'_>> = sums
        .chunks_exact(width)
        .map(|row| Row { slots: &row[..count], shares: &row[count..2 * count], tokens: row[2 * count + 1] })
        .filter(|row| row.tokens > 0.0)
        .collect();
    let mut routing = Routing::default();
    if rows.is_empty() {
        return routing;
    }
    let mean = |of: &dyn Fn(&Row<'_>) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    let largest = rows.iter().map(Row::largest).fold(0.0, f64::max);
    let idle = rows.iter().flat_map(|row| row.slots).filter(|slots| **slots == 0.0).count();
    routing.metrics.extend([
        ("router/effective_experts".to_owned(), mean(&|row| row.effective())),
        ("router/largest_share".to_owned(), largest),
        ("router/idle_experts".to_owned(), idle as f64),
    ]);
    for (number, name) in experts.iter().enumerate() {
        let parts = |row: &Row<'_>| {
            let parts = if row.is_dense() { row.shares } else { row.slots };
            parts[number] / parts.iter().sum::<f64>()
        };
        routing.metrics.push((format!("router/part/{name}"), mean(&parts)));
    }
    for (row, place) in rows.iter().zip(&places).filter(|(row, _)| row.has_collapsed()) {
        let place = place.name.trim_start_matches("base_model.model.").trim_end_matches(".weight");
        let (effective, largest) = (row.effective(), 100.0 * row.largest());
        routing.warnings.push(format!(
            "{place} has collapsed: {effective:.1} of {count} experts do the work, one has {largest:.0} % of the tokens"
        ));
    }
    routing
}

#[cfg(test)]
mod tests {
    use pleach_nn::{Init, SiteId};

    use super::*;
    use crate::plan::PlannedTensor;

    fn routing(rows: &[[f64; 8]]) -> Routing {
        let router = |at: usize| {
            PlannedTensor::trained(
                format!("base_model.model.{at}.router.weight"),
                SiteId(0),
                WEIGHT,
                [3, 4],
                Init::Zeros,
            )
        };
        let plan = Plan { tensors: (0..rows.len()).map(router).collect(), ..Plan::default() };
        of(&plan, &["a".into(), "b".into(), "c".into()], &rows.concat(), 8)
    }

    #[test]
    fn balance_and_collapse_are_told_apart() {
        // slots of three experts, shares, z, tokens
        let even = [20.0, 20.0, 20.0, 10.0, 10.0, 10.0, 0.0, 30.0];
        let collapsed = [30.0, 30.0, 0.0, 14.0, 14.0, 2.0, 0.0, 30.0];
        let fine = routing(&[even]);
        assert!(fine.warnings.is_empty(), "{fine:?}");
        assert!((fine.metrics[0].1 - 3.0).abs() < 1e-9);
        let bad = routing(&[even, collapsed]);
        assert_eq!(bad.warnings.len(), 1, "{bad:?}");
        assert!(bad.warnings[0].starts_with("1.router has collapsed: 2.0 of 3"), "{bad:?}");
        assert_eq!(bad.metrics[2], ("router/idle_experts".to_owned(), 1.0));
        let dense = [30.0, 30.0, 30.0, 29.9, 0.05, 0.05, 0.0, 30.0];
        assert_eq!(routing(&[dense]).warnings.len(), 1);
    }
}
