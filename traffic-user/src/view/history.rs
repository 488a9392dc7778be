//! What a subject moved, period by period.

use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;

use super::{
    books::{Head, SpanJson, UsageJson, WhoJson, billed_text, layer_text, who},
    chart::bar,
    sheet::{self, word},
    table::{UNKNOWN, grid},
};
use crate::accounting::{
    billing::Counting,
    history::{HistoryReport, Row, Series},
    period::{Calendar, Period, utc},
    reading::Coverage,
    subject::SubjectKind,
    units::bytes_in,
    usage::Usage,
};

/// A bar that is shorter shows nothing.
const SHORTEST_BAR: usize = 8;
/// A bar that is longer shows nothing more.
const LONGEST_BAR: usize = 60;

#[derive(Serialize)]
struct DocumentJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    period: &'static str,
    #[serde(flatten)]
    asked: SpanJson,
    subjects: Vec<WhoJson>,
    layers: Vec<SeriesJson>,
}

#[derive(Serialize)]
struct SeriesJson {
    layer: &'static str,
    periods: Vec<RowJson>,
    total: UsageJson,
}

#[derive(Serialize)]
struct RowJson {
    label: String,
    #[serde(flatten)]
    span: SpanJson,
    whole: bool,
    running: bool,
    #[serde(flatten)]
    usage: UsageJson,
}

fn kind(report: &HistoryReport) -> SubjectKind {
    report.subjects.first().map_or(SubjectKind::Host, |who| who.subject.kind())
}

impl RowJson {
    fn new(report: &HistoryReport, row: &Row) -> Self {
        Self {
            label: report.terms.calendar.label(report.period, row.period.begin),
            span: row.span.into(),
            whole: row.span == row.period,
            running: row.running,
            usage: UsageJson::new(row.usage, kind(report), &report.terms),
        }
    }
}

/// One JSON document, without a line break.
///
/// # Errors
///
/// When it cannot be written, which does not happen in memory.
pub fn json(report: &HistoryReport) -> serde_json::Result<String> {
    let series = |series: &Series| SeriesJson {
        layer: series.layer.name(),
        periods: series.rows.iter().map(|row| RowJson::new(report, row)).collect(),
        total: UsageJson::new(Some(series.total), kind(report), &report.terms)
            .billed(series.billed(&report.terms, report.period)),
    };
    serde_json::to_string(&DocumentJson {
        head: Head::new("history", report.taken_at, &report.host, &report.terms),
        period: report.period.name(),
        asked: report.asked.into(),
        subjects: report.subjects.iter().map(WhoJson::from).collect(),
        layers: report.series.iter().map(series).collect(),
    })
}

/// One line a period and layer.
pub fn csv(report: &HistoryReport) -> String {
    let columns = ["layer", "period", "from", "to", "whole", "running"];
    let mut lines = sheet::names(columns.into_iter().chain(UsageJson::COLUMNS));
    for series in &report.series {
        for row in &series.rows {
            let line = RowJson::new(report, row);
            let texts = [
                word(series.layer.name()),
                word(&line.label),
                word(utc(row.span.begin)),
                word(utc(row.span.end)),
                word(line.whole),
                word(line.running),
            ];
            lines.push_str(&sheet::line(texts.into_iter().chain(line.usage.cells())));
        }
    }
    lines
}

/// A table a layer; with bars where a terminal of that many columns shows it.
pub fn table(report: &HistoryReport, columns: Option<usize>) -> String {
    let names: Vec<_> = report.subjects.iter().map(who).collect();
    let calendar = &report.terms.calendar;
    let mut text = format!(
        "{} on {}, {}, {} to {} ({})\n",
        names.join(" and "),
        report.host,
        by(report.period),
        calendar.clock(report.asked.begin),
        calendar.clock(report.asked.end),
        calendar.zone_name()
    );
    if report.series.is_empty() {
        text.push_str("nothing was booked in this time\n");
    }
    for series in &report.series {
        text.push_str(&format!("\n{}\n", layer_text(kind(report), series.layer)));
        text.push_str(&layer(report, series, columns));
    }
    if report.terms.counting != Counting::Both {
        text.push_str(&format!("\nbilled: {}\n", billed_text(&report.terms)));
    }
    text
}

/// What a row is, for people.
pub(super) const fn by(period: Period) -> &'static str {
    match period {
        Period::Minutes => "by 5 minutes",
        Period::Hour => "by hour",
        Period::Day => "by day",
        Period::Week => "by week",
        Period::Month => "by month",
        Period::Billing => "by billing month",
    }
}

/// The name of a row: a day with its weekday.
pub(super) fn row_name(calendar: &Calendar, period: Period, begin: i64) -> String {
    let label = calendar.label(period, begin);
    match period {
        Period::Day => format!("{label} {}", calendar.weekday(begin)),
        Period::Billing => format!("from {label}"),
        Period::Minutes | Period::Hour | Period::Week | Period::Month => label,
    }
}

/// What is to be known of a row.
fn note(row: &Row) -> String {
    let mut notes = Vec::new();
    if row.running {
        notes.push("so far");
    } else if row.span != row.period {
        notes.push("part");
    }
    match row.usage.map(|usage| usage.coverage) {
        Some(Coverage::Gap) => notes.push("GAP"),
        Some(Coverage::Estimated) => notes.push("estimated"),
        Some(Coverage::Complete) | None => {}
    }
    notes.join(", ")
}

fn layer(report: &HistoryReport, series: &Series, columns: Option<usize>) -> String {
    let counting = report.terms.counting;
    let billed = counting != Counting::Both;
    let mut headers = vec!["PERIOD", "IN", "OUT", "TOTAL"];
    if kind(report) == SubjectKind::User {
        headers = vec!["PERIOD", "UP", "DOWN", "TOTAL"];
    }
    if billed {
        headers.push("BILLED");
    }
    let noted = series.rows.iter().any(|row| !note(row).is_empty());
    if noted {
        headers.push("NOTE");
    }
    let mut table = grid(&headers, 1);
    let mut line = |name: String, usage: Option<Usage>, paid: Option<u64>, note: String| {
        let shown = |bytes: Option<u64>| {
            let text = bytes.map(|bytes| bytes_in(report.terms.unit, bytes, 1));
            text.unwrap_or_else(|| UNKNOWN.to_owned())
        };
        let bytes = |of: &dyn Fn(Usage) -> u64| shown(usage.map(of));
        let mut cells = vec![
            bytes(&|usage| usage.traffic.input_bytes),
            bytes(&|usage| usage.traffic.output_bytes),
            bytes(&|usage| usage.traffic.bytes()),
        ];
        if billed {
            cells.push(shown(paid));
        }
        if noted {
            cells.push(note);
        }
        let mut row = vec![Cell::new(name)];
        row.extend(
            cells.into_iter().map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right)),
        );
        table.add_row(row);
    };
    for row in &series.rows {
        let name = row_name(&report.terms.calendar, report.period, row.period.begin);
        let paid = row.usage.map(|usage| counting.of(usage.traffic));
        line(name, row.usage, paid, note(row));
    }
    let paid = series.billed(&report.terms, report.period);
    line("total".to_owned(), Some(series.total), paid, String::new());
    let bars = |width: usize| {
        let most = series.rows.iter().filter_map(|row| row.usage);
        let most = most.map(|usage| usage.traffic.bytes()).max().unwrap_or(0);
        let bar = |row: &Row| {
            let traffic = row.usage.map(|usage| usage.traffic).unwrap_or_default();
            bar(traffic.input_bytes, traffic.output_bytes, most, width)
        };
        series.rows.iter().map(bar).collect()
    };
    beside(&table, columns, &bars)
}

/// A table with a bar behind each of its lines but the first, as long as the terminal has room.
pub(super) fn beside(
    table: &Table,
    columns: Option<usize>,
    bars: &dyn Fn(usize) -> Vec<String>,
) -> String {
    let lines: Vec<String> = table.lines().collect();
    let used = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) + 1;
    let room = columns.unwrap_or(0).saturating_sub(used).min(LONGEST_BAR);
    let bars = if room < SHORTEST_BAR { Vec::new() } else { bars(room) };
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        match n.checked_sub(1).and_then(|n| bars.get(n)).filter(|bar| !bar.is_empty()) {
            Some(bar) => text.push_str(&format!("{line} {bar}\n")),
            None => text.push_str(&format!("{}\n", line.trim_end())),
        }
    }
    text
}

#[cfg(test)]
mod tests;
