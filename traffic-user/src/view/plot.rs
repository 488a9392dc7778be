//! Histories and rankings as pictures: one SVG file, no script, fonts of whoever looks at it.

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _, IntoFont as _,
        IntoSegmentedCoord as _, RGBColor, Rectangle, SVGBackend, SegmentValue, WHITE,
    },
    style::Color as _,
};

use super::{books, history};
use crate::accounting::{
    history::{Field, HistoryReport, Series, TopReport},
    ident::shown,
    subject::SubjectKind,
    units::bytes_in,
    usage::Ranking,
};

const WIDTH: u32 = 960;
const PANEL: u32 = 360;
const LINE: u32 = 24;
/// What enters.
const INPUT: RGBColor = RGBColor(0xe0, 0x8a, 0x2c);
/// What leaves.
const OUTPUT: RGBColor = RGBColor(0x3b, 0x7d, 0xd8);

/// A picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the picture: {0}")]
pub struct PlotError(String);

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for PlotError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self(error.to_string())
    }
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Bars of a history: a panel for each layer.
///
/// # Errors
///
/// [`PlotError`].
pub fn history(report: &HistoryReport) -> Result<String, PlotError> {
    let names: Vec<_> = report.subjects.iter().map(books::who).collect();
    let title =
        format!("{} on {}, {}", names.join(" and "), report.host, history::by(report.period));
    let kind = report.subjects.first().map_or(SubjectKind::Host, |who| who.subject.kind());
    let panels = report.series.iter().map(|_| PANEL).collect();
    picture(&title, panels, |n, panel| match report.series.get(n) {
        Some(series) => {
            let caption =
                format!("{}: input orange, output blue", books::layer_text(kind, series.layer));
            bars(report, series, &caption, panel)
        }
        None => Ok(()),
    })
}

/// Bars of a ranking: a panel for each layer.
///
/// # Errors
///
/// [`PlotError`].
pub fn top(report: &TopReport) -> Result<String, PlotError> {
    let title = format!("top {} on {} by {}", report.field.name(), report.host, report.by.name());
    let kind = match report.field {
        Field::Users => SubjectKind::User,
        Field::Groups | Field::Ports => SubjectKind::Group,
    };
    let height = |ranking: &Ranking| {
        u32::try_from(ranking.places.len()).unwrap_or(u32::MAX).min(500).saturating_mul(LINE) + 90
    };
    let panels = report.rankings.iter().map(|(_, ranking)| height(ranking)).collect();
    picture(&title, panels, |n, panel| match report.rankings.get(n) {
        Some((layer, ranking)) => places(report, ranking, books::layer_text(kind, *layer), panel),
        None => Ok(()),
    })
}

fn picture(
    title: &str,
    panels: Vec<u32>,
    draw: impl Fn(usize, &Panel<'_>) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    const HEAD: u32 = 40;
    let mut svg = String::new();
    {
        let height = HEAD + panels.iter().sum::<u32>().max(LINE);
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut rest = root.titled(title, ("sans-serif", 20).into_font())?;
        if panels.is_empty() {
            rest.titled("nothing was booked in this time", ("sans-serif", 14).into_font())?;
        }
        for (n, height) in panels.into_iter().enumerate() {
            let (panel, below) = rest.split_vertically(height);
            draw(n, &panel)?;
            rest = below;
        }
        root.present()?;
    }
    Ok(svg)
}

#[expect(clippy::cast_precision_loss, reason = "the place of a line in a picture")]
const fn place(value: u64) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a label of a scale that begins at 0 and ends at a u64"
)]
fn bytes_at(report: &crate::accounting::history::Terms, value: f64) -> String {
    bytes_in(report.unit, value.max(0.0) as u64, 1)
}

fn bars(
    report: &HistoryReport,
    series: &Series,
    caption: &str,
    panel: &Panel<'_>,
) -> Result<(), PlotError> {
    let traffic = series.rows.iter().filter_map(|row| row.usage).map(|usage| usage.traffic);
    let most = traffic.map(crate::accounting::reading::Traffic::bytes).max().unwrap_or(0);
    let count = place(u64::try_from(series.rows.len()).unwrap_or(u64::MAX));
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, ("sans-serif", 14))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..count.max(1.0), 0.0..place(most).max(1.0) * 1.05)?;
    let label = |at: f64| {
        let row = series.rows.iter().enumerate().find(|(n, _)| {
            let n = place(u64::try_from(*n).unwrap_or(u64::MAX));
            n <= at && at < n + 1.0
        });
        row.map_or_else(String::new, |(_, row)| {
            report.terms.calendar.label(report.period, row.period.begin)
        })
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(series.rows.len().clamp(1, 8))
        .x_label_formatter(&|at| label(*at))
        .y_label_formatter(&|value| bytes_at(&report.terms, *value))
        .draw()?;
    let mut drawn = Vec::new();
    for (n, row) in series.rows.iter().enumerate() {
        let Some(usage) = row.usage else { continue };
        let left = place(u64::try_from(n).unwrap_or(u64::MAX)) + 0.1;
        let (input, all) = (usage.traffic.input_bytes, usage.traffic.bytes());
        for (low, high, colour) in [(0, input, INPUT), (input, all, OUTPUT)] {
            let corners = [(left, place(low)), (left + 0.8, place(high))];
            drawn.push(Rectangle::new(corners, colour.filled()));
        }
    }
    chart.draw_series(drawn)?;
    Ok(())
}

fn places(
    report: &TopReport,
    ranking: &Ranking,
    caption: &str,
    panel: &Panel<'_>,
) -> Result<(), PlotError> {
    let bytes: Vec<u64> =
        ranking.places.iter().map(|place| report.by.of(place.usage.traffic)).collect();
    let most = bytes.iter().copied().max().unwrap_or(0);
    let last = u32::try_from(bytes.len().saturating_sub(1)).unwrap_or(u32::MAX - 1);
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, ("sans-serif", 14))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(260)
        .build_cartesian_2d(0.0..place(most).max(1.0) * 1.05, (0..last).into_segmented())?;
    // The scale goes up, and the first place is at the top.
    let name = |at: &SegmentValue<u32>| {
        let SegmentValue::CenterOf(at) = at else { return String::new() };
        let from_top = last.checked_sub(*at).and_then(|n| usize::try_from(n).ok());
        let found = from_top.and_then(|n| ranking.places.get(n));
        found.map_or_else(String::new, |place| match place.name.as_deref() {
            Some(name) => format!("{} ({})", shown(&place.subject.key()), shown(name)),
            None => shown(&place.subject.key()),
        })
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(ranking.places.len() + 1)
        .y_label_formatter(&name)
        .x_label_formatter(&|value| bytes_at(&report.terms, *value))
        .draw()?;
    let bar = |(at, bytes): (u32, &u64)| {
        let corners =
            [(0.0, SegmentValue::Exact(at)), (place(*bytes), SegmentValue::Exact(at + 1))];
        let mut bar = Rectangle::new(corners, OUTPUT.filled());
        bar.set_margin(3, 3, 0, 0);
        bar
    };
    chart.draw_series((0..=last).rev().zip(&bytes).map(bar))?;
    Ok(())
}

#[cfg(test)]
mod tests;
