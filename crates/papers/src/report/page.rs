//! A page of `docs/papers/`.

use std::fmt::Write as _;

use super::{form, margin, number, word};
use crate::judge::Outcome;
use crate::page::Page;

/// The page in Markdown.
pub(super) fn markdown(page: &Page, outcome: &Outcome) -> String {
    let mut text = format!("# {:02} {}\n\n{}\n\n> {}\n\n", page.number, page.title, page.paper, page.claim);
    let _ = writeln!(text, "{}\n", page.setup.trim());
    arms(&mut text, page, outcome);
    let _ = writeln!(text, "![every seed, and the mean]({:02}.svg)\n", page.number);
    margins(&mut text, outcome);
    for verdict in outcome.margins.iter().filter(|verdict| !verdict.holds) {
        if let Some(reason) = &verdict.reason {
            let _ = writeln!(text, "*{}* is not shown: {reason}\n", verdict.says);
        }
    }
    let last = outcome.seeds.saturating_sub(1);
    let _ = writeln!(
        text,
        "Seeds 0 to {last}, {:.0} s of processor time on the {}. Every number is in [{:02}.json]({:02}.json). `cargo xtask papers {:02}` \
         writes this page; what the words mean is in [README.md](README.md).",
        outcome.work,
        if outcome.device == "cpu" { "CPU" } else { "host of the GPU" },
        page.number,
        page.number,
        page.number
    );
    text
}

/// A row an arm, a column a measure.
fn arms(text: &mut String, page: &Page, outcome: &Outcome) {
    let counted = outcome.scores.iter().any(|row| row.params.is_some());
    let measures = || page.measures.iter().map(|measure| measure.name);
    let mut head = vec!["arm", "what it is"];
    head.extend(counted.then_some("parameters"));
    head.extend(measures());
    let rule = "|---".repeat(head.len());
    let _ = writeln!(text, "| {} |\n{rule}|", head.join(" | "));
    for arm in page.arms {
        let of = |measure: &str| outcome.scores.iter().find(|row| row.arm == arm.name && row.measure == measure);
        let params = outcome.scores.iter().find(|row| row.arm == arm.name).and_then(|row| row.params);
        let mut cells = vec![arm.name.to_owned(), arm.what.to_owned()];
        cells.extend(counted.then(|| params.map(grouped).unwrap_or_default()));
        cells.extend(
            measures().map(|measure| of(measure).map(|row| number(page, measure, &row.values)).unwrap_or_default()),
        );
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

fn margins(text: &mut String, outcome: &Outcome) {
    text.push_str("| what must hold | measured | seeds with its sign | |\n|---|---|---|---|\n");
    for verdict in &outcome.margins {
        let (signs, seeds) = (verdict.signs, outcome.seeds);
        let _ = writeln!(
            text,
            "| {} | {} | {signs} of {seeds} | {} |",
            verdict.says,
            margin(verdict),
            word(verdict, outcome)
        );
    }
    text.push('\n');
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let rest = digits.as_bytes()[first..].chunks(3).map(|chunk| String::from_utf8_lossy(chunk).into_owned());
    let first = (first > 0).then(|| digits[..first].to_owned());
    first.into_iter().chain(rest).collect::<Vec<_>>().join(",")
}

/// A number with its unit, for axes.
pub(super) fn tick(page: &Page, measure: &str, value: f64) -> String {
    let (digits, _) = form(page, measure);
    format!("{value:.digits$}")
}
