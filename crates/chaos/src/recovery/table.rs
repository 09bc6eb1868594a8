//! Medians and 99th percentiles.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::trials::{Scenario, Times};
use crate::measure::quantiles;

/// Every time of every trial, in seconds.
#[derive(Debug, Default)]
pub(super) struct Table {
    // Measures in the order in which a trial gives them.
    measures: BTreeMap<(Scenario, usize), (&'static str, Vec<f64>)>,
}

impl Table {
    pub(super) fn add(&mut self, scenario: Scenario, times: &Times) {
        for (what, time) in times {
            let known = self.measures.iter().find(|((of, _), (name, _))| *of == scenario && name == what);
            let number = known.map_or_else(
                || self.measures.keys().filter(|(of, _)| *of == scenario).count(),
                |((_, number), _)| *number,
            );
            let entry = self.measures.entry((scenario, number)).or_insert((what, Vec::new()));
            entry.1.push(time.as_secs_f64());
        }
    }

    /// For people, in milliseconds; of one scenario or of all.
    pub(super) fn text(&self, only: Option<Scenario>) -> String {
        let mut text =
            format!("{:<22} {:<62} {:>6} {:>9} {:>9} {:>9}\n", "scenario", "ms", "trials", "median", "p99", "max");
        for ((scenario, _), (what, times)) in &self.measures {
            if only.is_some_and(|only| only != *scenario) {
                continue;
            }
            let (median, p99) = quantiles(times.clone());
            let max = times.iter().copied().fold(0.0, f64::max);
            let ms = |time: Option<f64>| format!("{:.0}", time.unwrap_or_default() * 1000.0);
            let _ = writeln!(
                text,
                "{:<22} {what:<62} {:>6} {:>9} {:>9} {:>9}",
                scenario.name(),
                times.len(),
                ms(median),
                ms(p99),
                ms(Some(max))
            );
        }
        text
    }

    pub(super) fn document(&self, trials: u32, workers: u32) -> Value {
        let rows: Vec<Value> = self
            .measures
            .iter()
            .map(|((scenario, _), (what, times))| {
                let (median, p99) = quantiles(times.clone());
                json!({
                    "scenario": scenario.name(), "measure": what, "trials": times.len(), "median_seconds": median,
                    "p99_seconds": p99, "all_seconds": times,
                })
            })
            .collect();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        json!({"trials": trials, "workers": workers, "cores": cores, "measures": rows})
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_gathered_by_measure_and_kept_in_order() {
        let mut table = Table::default();
        for trial in 1..=100 {
            let times = vec![("second", Duration::from_millis(trial * 2)), ("first", Duration::from_millis(trial))];
            table.add(Scenario::Worker, &times);
        }
        let document = table.document(100, 3);
        let rows = document["measures"].as_array().unwrap();
        assert_eq!((rows.len(), &rows[0]["measure"]), (2, &json!("second")));
        assert_eq!((&rows[1]["median_seconds"], &rows[1]["p99_seconds"]), (&json!(0.05), &json!(0.099)));
        assert_eq!(table.text(None).lines().count(), 3);
        assert_eq!(table.text(Some(Scenario::Transfer)).lines().count(), 1);
    }
}
