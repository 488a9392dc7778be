//! Who moved most.

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::{
    books::{Head, SpanJson, UsageJson, WhoJson, layer_text},
    chart::bar,
    history::beside,
    sheet::{self, number, ratio, text, word},
    table::grid,
};
use crate::accounting::{
    history::{Field, TopReport, Who},
    ident::shown,
    reading::Layer,
    subject::SubjectKind,
    units::bytes_in,
    usage::{Ranked, Ranking, Usage},
};

#[derive(Serialize)]
struct DocumentJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    what: &'static str,
    by: &'static str,
    #[serde(flatten)]
    span: SpanJson,
    layers: Vec<RankingJson>,
}

#[derive(Serialize)]
struct RankingJson {
    layer: &'static str,
    places: Vec<PlaceJson>,
    subjects: usize,
    total: UsageJson,
}

#[derive(Serialize)]
struct PlaceJson {
    place: usize,
    #[serde(flatten)]
    who: WhoJson,
    share: Option<f64>,
    #[serde(flatten)]
    usage: UsageJson,
}

const fn kind(field: Field) -> SubjectKind {
    match field {
        Field::Users => SubjectKind::User,
        Field::Groups | Field::Ports => SubjectKind::Group,
    }
}

fn who(place: &Ranked) -> Who {
    Who { subject: place.subject.clone(), name: place.name.clone() }
}

impl PlaceJson {
    fn new(report: &TopReport, total: Option<Usage>, n: usize, place: &Ranked) -> Self {
        Self {
            place: n + 1,
            who: WhoJson::from(&who(place)),
            share: share(report, total, place),
            usage: UsageJson::new(Some(place.usage), kind(report.field), &report.terms),
        }
    }
}

/// Part of the whole, from 0 to 1, to six digits.
#[expect(clippy::cast_precision_loss, reason = "a share for people; exact numbers stand beside it")]
fn share(report: &TopReport, total: Option<Usage>, place: &Ranked) -> Option<f64> {
    let all = total.map(|total| report.by.of(total.traffic)).filter(|all| *all > 0)?;
    let share = report.by.of(place.usage.traffic) as f64 / all as f64;
    Some((share * 1e6).round() / 1e6)
}

/// One JSON document, without a line break.
///
/// # Errors
///
/// When it cannot be written, which does not happen in memory.
pub fn json(report: &TopReport) -> serde_json::Result<String> {
    let place = |ranking: &Ranking, (n, place): (usize, &Ranked)| {
        PlaceJson::new(report, ranking.total, n, place)
    };
    let layer = |(layer, ranking): &(Layer, Ranking)| RankingJson {
        layer: layer.name(),
        places: ranking.places.iter().enumerate().map(|one| place(ranking, one)).collect(),
        subjects: ranking.subjects,
        total: UsageJson::new(ranking.total, kind(report.field), &report.terms),
    };
    serde_json::to_string(&DocumentJson {
        head: Head::new("top", report.taken_at, &report.host, &report.terms),
        what: report.field.name(),
        by: report.by.name(),
        span: report.span.into(),
        layers: report.rankings.iter().map(layer).collect(),
    })
}

/// One line a place and layer.
pub fn csv(report: &TopReport) -> String {
    let columns = ["layer", "place", "kind", "key", "name", "share"];
    let mut lines = sheet::names(columns.into_iter().chain(UsageJson::COLUMNS));
    for (layer, ranking) in &report.rankings {
        for (n, place) in ranking.places.iter().enumerate() {
            let line = PlaceJson::new(report, ranking.total, n, place);
            let first = [
                word(layer.name()),
                number(u64::try_from(line.place).ok()),
                word(line.who.kind),
                text(&place.subject.key()),
                text(place.name.as_deref().unwrap_or_default()),
                ratio(line.share),
            ];
            lines.push_str(&sheet::line(first.into_iter().chain(line.usage.cells())));
        }
    }
    lines
}

/// A table a layer; with bars where a terminal of that many columns shows it.
pub fn table(report: &TopReport, columns: Option<usize>) -> String {
    let calendar = &report.terms.calendar;
    let mut text = format!(
        "top {} on {} by {}, {} to {} ({})\n",
        report.field.name(),
        report.host,
        report.by.name(),
        calendar.clock(report.span.begin),
        calendar.clock(report.span.end),
        calendar.zone_name()
    );
    if report.rankings.is_empty() {
        text.push_str("nothing was booked in this time\n");
    }
    for (layer, ranking) in &report.rankings {
        text.push_str(&format!("\n{}\n", layer_text(kind(report.field), *layer)));
        text.push_str(&one(report, ranking, columns));
    }
    text
}

/// Names of the first columns, and how many there are.
fn one(report: &TopReport, ranking: &Ranking, columns: Option<usize>) -> String {
    let headers: &[&str] = match report.field {
        Field::Users => &["#", "USER", "UP", "DOWN", "TOTAL", "SHARE"],
        Field::Groups => &["#", "GROUP", "PORTS", "IN", "OUT", "TOTAL", "SHARE"],
        Field::Ports => &["#", "PORTS", "GROUP", "IN", "OUT", "TOTAL", "SHARE"],
    };
    let mut table = grid(headers, headers.len() - 4);
    let mut line = |texts: Vec<String>, usage: Usage, share: String| {
        let bytes = |bytes| bytes_in(report.terms.unit, bytes, 1);
        let numbers = [
            bytes(usage.traffic.input_bytes),
            bytes(usage.traffic.output_bytes),
            bytes(usage.traffic.bytes()),
            share,
        ];
        let mut row: Vec<_> = texts.into_iter().map(Cell::new).collect();
        row.extend(numbers.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        table.add_row(row);
    };
    for (n, place) in ranking.places.iter().enumerate() {
        let name = place.name.as_deref().map(shown).unwrap_or_default();
        let key = shown(&place.subject.key());
        let mut texts = vec![(n + 1).to_string()];
        texts.extend(match report.field {
            Field::Users => vec![key],
            Field::Groups => vec![name, key],
            Field::Ports => vec![key, name],
        });
        let share = share(report, ranking.total, place);
        let share = share.map_or_else(String::new, |share| format!("{:.1} %", share * 100.0));
        line(texts, place.usage, share);
    }
    let hidden = ranking.subjects.saturating_sub(ranking.places.len());
    if let Some(total) = ranking.total {
        let mut texts = vec![String::new(), format!("all {}", ranking.subjects)];
        texts.resize(headers.len() - 4, String::new());
        line(texts, total, String::new());
    }
    let most = ranking.places.iter().map(|place| report.by.of(place.usage.traffic)).max();
    let bars = |width: usize| {
        let bar =
            |place: &Ranked| bar(0, report.by.of(place.usage.traffic), most.unwrap_or(0), width);
        ranking.places.iter().map(bar).collect()
    };
    let mut text = beside(&table, columns, &bars);
    if hidden > 0 {
        text.push_str(&format!("and {hidden} more with less traffic\n"));
    }
    text
}

#[cfg(test)]
mod tests;
