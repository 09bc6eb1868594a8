//! The plot of a page: a panel a measure, a row an arm, a dot a seed, a bar at the mean. Drawn by hand, so that equal numbers
//! give equal files.

use std::fmt::Write as _;

use super::form;
use super::page::tick;
use crate::judge::{Outcome, Row, mean_and_spread};
use crate::page::Page;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 30.0;
const ROW: f64 = 26.0;
const TITLE: f64 = 30.0;
const AXIS: f64 = 34.0;
const COLOURS: [&str; 6] = ["#1f6f8b", "#c8553d", "#588157", "#8e6c8a", "#b58900", "#555555"];

/// The file's content.
pub(super) fn svg(page: &Page, outcome: &Outcome) -> String {
    let mut body = String::new();
    let mut top = 8.0;
    for measure in page.measures {
        let rows: Vec<&Row> = outcome.scores.iter().filter(|row| row.measure == measure.name).collect();
        if !rows.is_empty() {
            top = panel(&mut body, page, measure.name, &rows, top);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{top}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Draws a panel from `top` on and gives where the next one begins.
fn panel(out: &mut String, page: &Page, measure: &str, rows: &[&Row], top: f64) -> f64 {
    let axis = Axis::of(rows);
    let (_, unit) = form(page, measure);
    let name = if unit.is_empty() { measure.to_owned() } else { format!("{measure}, {unit}") };
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>", top + 18.0, escaped(&name));
    let (first, last) = (top + TITLE, top + TITLE + ROW * rows.len() as f64);
    for value in axis.ticks() {
        let x = axis.at(value);
        let _ = writeln!(out, "<path d=\"M{x:.1} {first:.1}V{last:.1}\" stroke=\"#dddddd\"/>");
        let (y, text) = (last + 16.0, tick(page, measure, value));
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#666666\">{text}</text>");
    }
    for (index, row) in rows.iter().enumerate() {
        let y = first + ROW * (index as f64 + 0.5);
        let arm = page.arms.iter().position(|arm| arm.name == row.arm).unwrap_or(index);
        one_row(out, &axis, row, y, COLOURS[arm % COLOURS.len()]);
    }
    last + AXIS
}

fn one_row(out: &mut String, axis: &Axis, row: &Row, y: f64, colour: &str) {
    let (x, base) = (LEFT - 10.0, y + 4.0);
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>", escaped(&row.arm));
    for value in &row.values {
        let x = axis.at(*value);
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\" fill-opacity=\"0.45\"/>");
    }
    let (x, from, to) = (axis.at(mean_and_spread(&row.values).0), y - 9.0, y + 9.0);
    let _ = writeln!(out, "<path d=\"M{x:.1} {from:.1}V{to:.1}\" stroke=\"{colour}\" stroke-width=\"3\"/>");
}

/// From numbers to places.
struct Axis {
    low: f64,
    step: f64,
    steps: usize,
}

impl Axis {
    /// Round numbers around all that is to be shown.
    fn of(rows: &[&Row]) -> Self {
        let all = || rows.iter().flat_map(|row| &row.values).copied();
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let room = ((high - low) / 5.0).max(high.abs() * 1e-3).max(1e-9);
        let power = 10f64.powf(room.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= room);
        let step = step.unwrap_or(10.0 * power);
        let first = (low / step).floor() * step;
        let steps = (((high - first) / step).ceil() as usize).max(1);
        Self { low: first, step, steps }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=self.steps).map(|index| self.low + self.step * index as f64)
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.step * self.steps as f64);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
