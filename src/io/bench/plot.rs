//! The distributions as a picture: which share of the samples took no longer than this.
//!
//! Runs on: the I/O thread.

use std::time::Duration;

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::samples::{Kind, Samples};
use super::summary::milliseconds;
use crate::io::pool::Lap;

const SIZE: (u32, u32) = (1200, 520);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type End = fn(&Lap) -> Option<Duration>;

/// Draws both panels as SVG text.
pub(crate) fn draw(samples: &Samples) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        draw_panel(&left, "Request to first byte", samples, |lap| {
            lap.first_byte
        })?;
        draw_panel(&right, "Request to reaped", samples, |lap| Some(lap.reaped))?;
        area.present()?;
    }
    Ok(svg)
}

fn draw_panel(area: &Area<'_>, title: &str, samples: &Samples, end: End) -> anyhow::Result<()> {
    let curves: Vec<_> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, sorted(samples.of(kind), end)))
        .filter(|(_, times)| !times.is_empty())
        .collect();
    let shortest = curves.iter().map(|(_, times)| times[0]);
    let longest = curves.iter().map(|(_, times)| times[times.len() - 1]);
    let shortest = shortest.min_by(f64::total_cmp).context("no samples")?;
    let longest = longest.max_by(f64::total_cmp).context("no samples")?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((shortest / 1.2..longest * 1.2).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("milliseconds")
        .y_desc("share of samples")
        .x_labels(12)
        .y_labels(11)
        .x_label_formatter(&|time| format!("{time}"))
        .y_label_formatter(&|share| format!("{:.0} %", share * 100.0))
        .label_style((FONT, 13))
        .draw()?;
    for (kind, times) in curves {
        let color = color(kind);
        chart
            .draw_series(LineSeries::new(steps(&times), color.stroke_width(2)))?
            .label(kind.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    Ok(())
}

/// Told apart by people who are colour-blind, too (Okabe and Ito's palette).
fn color(kind: Kind) -> RGBColor {
    match kind {
        Kind::ReadySpare => RGBColor(0, 158, 115),
        Kind::Cold => RGBColor(213, 94, 0),
        Kind::Floor => RGBColor(0, 114, 178),
        Kind::BareClone => RGBColor(86, 86, 86),
    }
}

fn sorted(laps: &[Lap], end: End) -> Vec<f64> {
    let mut times: Vec<f64> = laps.iter().filter_map(end).map(milliseconds).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The empirical distribution: a step up at each time.
fn steps(times: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    let share = |place: usize| place as f64 / times.len() as f64;
    times
        .iter()
        .enumerate()
        .flat_map(move |(place, &time)| [(time, share(place)), (time, share(place + 1))])
}
