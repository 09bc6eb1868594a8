//! What was measured, for people: lines on the terminal, a page with its plot and its numbers in `docs/papers/`, and the table
//! of all pages.

mod index;
mod page;
mod plot;

use std::fmt::Write as _;
use std::path::Path;

use pleach_base::{Result, ResultExt as _, code};

use crate::judge::{Outcome, Verdict, mean_and_spread};
use crate::page::Page;

pub use index::write_index;

/// Writes `NN.md`, `NN.svg` and `NN.json` into a folder.
///
/// # Errors
/// `IO` when they cannot be written.
pub fn write(folder: &Path, page: &Page, outcome: &Outcome) -> Result<()> {
    let name = format!("{:02}", page.number);
    let json = serde_json::to_string_pretty(outcome).unwrap_or_default() + "\n";
    put(&folder.join(format!("{name}.md")), &page::markdown(page, outcome))?;
    put(&folder.join(format!("{name}.svg")), &plot::svg(page, outcome))?;
    put(&folder.join(format!("{name}.json")), &json)
}

fn put(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("{}: cannot be written", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).or_code(code::IO, failed)?;
    }
    std::fs::write(path, text).or_code(code::IO, failed)
}

/// The lines for a terminal.
#[must_use]
pub fn text(page: &Page, outcome: &Outcome) -> String {
    let mut text = format!("{:02} {}\n   claim: {}\n", page.number, page.title, page.claim);
    for row in &outcome.scores {
        let params = row.params.map(|params| format!("  ({params} parameters)")).unwrap_or_default();
        let _ =
            writeln!(text, "   {:28} {:24} {}{params}", row.arm, row.measure, number(page, &row.measure, &row.values));
    }
    for verdict in &outcome.margins {
        let word = word(verdict, outcome);
        let _ = writeln!(
            text,
            "   {word}: {}: {}, {} of {} seeds",
            verdict.says,
            margin(verdict),
            verdict.signs,
            outcome.seeds
        );
        if let (false, Some(reason)) = (verdict.holds, &verdict.reason) {
            let _ = writeln!(text, "      because {reason}");
        }
    }
    let _ = write!(
        text,
        "   {:.0} s of processor time, {:.0} s on {} threads",
        outcome.work, outcome.seconds, outcome.threads
    );
    text
}

/// `mean ± spread` of a measure.
fn number(page: &Page, measure: &str, values: &[f64]) -> String {
    let (digits, unit) = form(page, measure);
    let (mean, spread) = mean_and_spread(values);
    format!("{mean:.digits$} ± {spread:.digits$}{}{unit}", if unit.is_empty() { "" } else { " " })
}

/// Digits behind the point and unit of a measure.
fn form(page: &Page, measure: &str) -> (usize, &'static str) {
    let found = page.measures.iter().find(|known| known.name == measure);
    found.map_or((3, ""), |measure| (measure.digits, measure.unit))
}

/// A margin as measured.
fn margin(verdict: &Verdict) -> String {
    match verdict.times {
        true => format!("{:.3} ± {:.3} times", verdict.margin, verdict.spread),
        false => format!("{:+.3} ± {:.3}", verdict.margin, verdict.spread),
    }
}

/// What a margin came to.
fn word(verdict: &Verdict, outcome: &Outcome) -> &'static str {
    match (verdict.holds, outcome.reduced) {
        (_, true) => "not judged",
        (true, _) => "shown",
        (false, _) => "not shown",
    }
}

#[cfg(test)]
mod tests;
