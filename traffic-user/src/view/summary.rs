//! Today, this billing month and since ever: the short report.

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::{
    books::{EventJson, Head, LayerUsageJson, SpanJson, WhoJson, billed_text, layer_text, who},
    chart::spark,
    table::{UNKNOWN, grid},
};
use crate::accounting::{
    history::{StandingLine, SummaryReport, rank},
    ident::shown,
    period::Period,
    reading::Layer,
    subject::{Subject, SubjectKind},
    units::bytes_in,
    usage::Usage,
};

#[derive(Serialize)]
struct DocumentJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    today: SpanJson,
    billing: SpanJson,
    booked: Option<SpanJson>,
    subjects: Vec<LineJson>,
    users: Vec<LineJson>,
    active_users: usize,
    events: Vec<EventJson>,
}

#[derive(Serialize)]
struct LineJson {
    #[serde(flatten)]
    who: WhoJson,
    today: Vec<LayerUsageJson>,
    billing: Vec<LayerUsageJson>,
    ever: Vec<LayerUsageJson>,
}

/// One JSON document.
///
/// # Errors
///
/// When it cannot be made, which does not happen in memory.
pub fn json(report: &SummaryReport) -> serde_json::Result<serde_json::Value> {
    let line = |line: &StandingLine| {
        let kind = line.who.subject.kind();
        let standing = &line.standing;
        let counting = report.terms.counting;
        let one = |usage: Usage| counting.of(usage.traffic);
        let all = |usages: &[Usage]| LayerUsageJson::all(usages, kind, &report.terms, one);
        let ever = |usage: Usage| standing.billed(usage, counting);
        LineJson {
            who: WhoJson::from(&line.who),
            today: all(&standing.today),
            billing: all(&standing.billing),
            ever: LayerUsageJson::all(&standing.ever, kind, &report.terms, ever),
        }
    };
    serde_json::to_value(DocumentJson {
        head: Head::new("summary", report.taken_at, &report.host, &report.terms),
        today: report.today.into(),
        billing: report.billing.into(),
        booked: report.extent.map(SpanJson::from),
        subjects: report.lines.iter().map(line).collect(),
        users: report.users.iter().map(line).collect(),
        active_users: report.active_users,
        events: report.events.iter().map(EventJson::from).collect(),
    })
}

/// A table for people.
pub fn table(report: &SummaryReport) -> String {
    let calendar = &report.terms.calendar;
    let Some(extent) = report.extent else {
        return format!("{}: nothing was booked yet\n", report.host);
    };
    let month = calendar.label(Period::Billing, report.billing.begin);
    let ever = calendar.label(Period::Day, extent.begin);
    // Two columns of one name would be told apart by nobody.
    let (month, ever, dates) = if month == ever {
        let dates = format!("this billing month and all that is booked begin on {month}\n");
        ("THIS BILLING MONTH".to_owned(), "EVER".to_owned(), Some(dates))
    } else {
        (format!("SINCE {month}"), format!("SINCE {ever}"), None)
    };
    let mut table = grid(&["WHO", "LAYER", "TODAY", &month, &ever], 2);
    let mut layers: Vec<(SubjectKind, Layer)> = Vec::new();
    for line in report.lines.iter().chain(&report.users) {
        let mut own: Vec<Layer> = line.standing.ever.iter().map(|usage| usage.layer).collect();
        own.sort_by_key(|layer| rank(*layer));
        for layer in own {
            let kind = line.who.subject.kind();
            if !layers.contains(&(kind, layer)) {
                layers.push((kind, layer));
            }
            let counting = report.terms.counting;
            let one = |usage: Usage| counting.of(usage.traffic);
            let ever = |usage: Usage| line.standing.billed(usage, counting);
            let bytes = |usages: &[Usage], billed: &dyn Fn(Usage) -> u64| {
                let usage = usages.iter().find(|usage| usage.layer == layer);
                usage.map_or_else(
                    || UNKNOWN.to_owned(),
                    |usage| bytes_in(report.terms.unit, billed(*usage), 2),
                )
            };
            let name = match &line.who.subject {
                Subject::User(email) => shown(email),
                Subject::Host
                | Subject::Device(_)
                | Subject::Group(_)
                | Subject::Lane(..)
                | Subject::Relay => who(&line.who),
            };
            let share = kind == SubjectKind::User && layer != Layer::Payload;
            let layer_name = match share {
                true => format!("{} share", layer.name()),
                false => layer.name().to_owned(),
            };
            let standing = &line.standing;
            let cells = [
                bytes(&standing.today, &one),
                bytes(&standing.billing, &one),
                bytes(&standing.ever, &ever),
            ];
            let mut row = vec![Cell::new(name), Cell::new(layer_name)];
            row.extend(cells.map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right)));
            table.add_row(row);
        }
    }
    let mut text = format!(
        "{} at {} ({})\n\n{}\n",
        report.host,
        calendar.clock(report.taken_at),
        calendar.zone_name(),
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    );
    text.push_str(&dates.unwrap_or_default());
    let hidden = report.active_users.saturating_sub(report.users.len());
    if hidden > 0 {
        text.push_str(&format!("and {hidden} more users with less traffic\n"));
    }
    if report.hours.iter().any(|bytes| *bytes > 0) {
        text.push_str(&format!("\ntoday by hour  |{}|\n", spark(&report.hours)));
    }
    text.push_str(&format!("\ncounted: {}\n", billed_text(&report.terms)));
    for (kind, layer) in layers {
        if kind != SubjectKind::Group && kind != SubjectKind::Relay {
            text.push_str(&format!(
                "{} {}: {}\n",
                kind.name(),
                layer.name(),
                layer_text(kind, layer)
            ));
        }
    }
    for event in &report.events {
        let at = i64::try_from(event.at.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
        text.push_str(&format!("{}  {}\n", calendar.clock(at), event.what));
    }
    text
}

#[cfg(test)]
mod tests;
