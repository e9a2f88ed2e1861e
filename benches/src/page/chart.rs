// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The charts of the page.

use maud::{Markup, PreEscaped};
use plotters::prelude::*;
use plotters::style::RGBColor;

use crate::Result;
use crate::results::{Figures, Series};

/// Colours that people with any kind of sight tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];
const FLOOR: RGBColor = RGBColor(0, 0, 0);

/// Draws the distributions of a group: floors in black, compositions in colours.
pub(super) fn latencies(ways: &[Figures]) -> Result<Markup> {
    let buckets = || ways.iter().flat_map(|way| &way.buckets);
    let bounds = buckets().map(|(at, _)| *at);
    let (least, most) = bounds.fold((f64::MAX, 0.0_f64), |(least, most), at| (least.min(at), most.max(at)));
    if most <= 0.0 {
        return Ok(PreEscaped(String::new()));
    }
    let share = |way: &Figures, count: u64| 100.0 * count as f64 / way.round_trips.max(1) as f64;
    let highest = ways
        .iter()
        .flat_map(|way| way.buckets.iter().map(|(_, count)| share(way, *count)))
        .fold(0.0_f64, f64::max);
    draw((960, 320), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), 0.0..highest * 1.05)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("latency, us")
            .y_desc("% of round trips")
            .draw()?;
        let mut colours = COLOURS.iter().cycle();
        for way in ways {
            let is_floor = way.floor.is_none();
            let colour = if is_floor {
                &FLOOR
            } else {
                colours.next().unwrap_or(&FLOOR)
            };
            let style = colour.stroke_width(if is_floor { 1 } else { 2 });
            let points = way.buckets.iter().map(|(at, count)| (*at, share(way, *count)));
            let label = format!("{}{}, {}", if is_floor { "floor: " } else { "" }, way.name, way.wait);
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .draw()?;
        Ok(())
    })
}

/// A value over a number.
pub(super) fn growth(series: &Series) -> Result<Markup> {
    let (mut last, mut most) = (1, 0.0_f64);
    for (count, value) in &series.points {
        last = last.max(*count);
        most = most.max(*value);
    }
    draw((460, 260), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(20)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((1..last + 1).log_scale(), 0.0..(most * 1.1).max(f64::MIN_POSITIVE))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(series.of.as_str())
            .y_desc(series.unit.as_str())
            .draw()?;
        let points = || series.points.iter().copied();
        chart.draw_series(LineSeries::new(points(), COLOURS[0].stroke_width(2)))?;
        chart.draw_series(points().map(|point| Circle::new(point, 3, COLOURS[0].filled())))?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<Markup> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(PreEscaped(svg))
}
