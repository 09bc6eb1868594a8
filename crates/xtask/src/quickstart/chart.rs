//! The training curves as an SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::job::Run;

/// Loss over steps, one line a seed.
pub(super) fn draw(path: &Path, runs: &[Run]) -> Result<()> {
    curve(path, runs).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn curve(path: &Path, runs: &[Run]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || runs.iter().flat_map(|run| &run.losses).filter(|(_, loss)| loss.is_finite());
    let last = points().map(|(step, _)| *step).max().unwrap_or(1).max(2);
    let top = points().map(|(_, loss)| *loss).fold(0.1, f64::max) * 1.05;
    let area = SVGBackend::new(path, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Contrastive loss on the training crates", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(1..last, 0.0..top)?;
    chart.configure_mesh().x_desc("step").y_desc("loss").light_line_style(WHITE).draw()?;
    for (index, run) in runs.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let line = run.losses.iter().copied().filter(|(_, loss)| loss.is_finite());
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(format!("seed {}", run.seed))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_with_one_line_a_seed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.svg");
        let run = |seed, losses: &[(u64, f64)]| Run {
            seed,
            before: Default::default(),
            after: Default::default(),
            losses: losses.to_vec(),
            seconds: 1.0,
            tokens_per_second: 1.0,
            trainable_params: 1,
            restarts: 0,
            checkpoint: String::new(),
        };
        draw(&path, &[run(0, &[(1, 3.0), (2, f64::NAN), (3, 2.0)]), run(7, &[(1, 2.5), (2, 2.0)])]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("seed 0") && svg.contains("seed 7"));
        draw(&path, &[run(0, &[])]).unwrap();
    }
}
