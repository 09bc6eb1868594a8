//! The runs of a workload as points, a column for each way of training.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::Report;

/// Draws tokens a second.
pub(super) fn draw(path: &Path, report: &Report) -> Result<()> {
    points(path, report).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn points(path: &Path, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    let speeds = report.arms.iter().flat_map(|arm| &arm.runs).map(|run| run.tokens_per_second);
    let top = speeds.filter(|speed| speed.is_finite()).fold(1.0, f64::max) * 1.1;
    let area = SVGBackend::new(path, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{}: real tokens a second, every run and the median", report.taken.name), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.5..report.arms.len() as f64 - 0.5, 0.0..top)?;
    let name = |x: &f64| {
        let arm = (x.fract() == 0.0).then(|| report.arms.get(*x as usize)).flatten();
        arm.map_or_else(String::new, |arm| format!("{}, {}", arm.system, arm.how))
    };
    let labels = 2 * report.arms.len() + 1;
    chart.configure_mesh().disable_x_mesh().light_line_style(WHITE).x_labels(labels).x_label_formatter(&name).draw()?;
    for (index, arm) in report.arms.iter().enumerate() {
        let (x, colour) = (index as f64, if arm.system == "Pleach" { BLUE } else { BLACK });
        let dots = arm.runs.iter().map(|run| Circle::new((x, run.tokens_per_second), 4, colour.mix(0.6).filled()));
        chart.draw_series(dots)?;
        let middle = arm.median(|run| run.tokens_per_second);
        let line = vec![(x - 0.2, middle), (x + 0.2, middle)];
        chart.draw_series(std::iter::once(PathElement::new(line, colour.stroke_width(2))))?;
    }
    area.present()?;
    Ok(())
}
