//! What history, rankings and summaries say, complete before anything is written.
//!
//! A subject may have numbers of several layers. Each is a [`Series`] or [`Ranking`] of its own: they
//! stand side by side and are never added.

use std::sync::Arc;

use super::{
    billing::{Counting, Unit},
    period::{Calendar, Period},
    reading::{Coverage, Layer, Traffic},
    subject::Subject,
    usage::{By, Event, Ranking, Span, Usage},
};

/// How the reader wants numbers and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Where days and billing months begin.
    pub calendar: Calendar,
    /// What is paid for.
    pub counting: Counting,
    /// How bytes are written for people.
    pub unit: Unit,
}

/// Whose numbers these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Whom they are booked to.
    pub subject: Subject,
    /// What it is called now. Foreign text.
    pub name: Option<Arc<str>>,
}

/// One period of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// When, as far as it was asked for.
    pub span: Span,
    /// The whole period: `span` may be a part of it.
    pub period: Span,
    /// Whether the period is not over yet.
    pub running: bool,
    /// What was booked, where anything was: nothing booked is not a measured zero.
    pub usage: Option<Usage>,
}

/// The history in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// What its bytes include.
    pub layer: Layer,
    /// Every period that was asked for and that the ledger reaches, the oldest first.
    pub rows: Vec<Row>,
    /// All of it.
    pub total: Usage,
}

impl Series {
    /// The bytes that are paid for in the busiest period.
    pub fn largest(&self, counting: Counting) -> u64 {
        let billed = |row: &Row| row.usage.map_or(0, |usage| counting.of(usage.traffic));
        self.rows.iter().map(billed).max().unwrap_or(0)
    }
}

/// What one subject moved, period by period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryReport {
    /// Seconds of Unix time.
    pub taken_at: i64,
    /// Name of this host.
    pub host: String,
    /// How it is to be shown.
    pub terms: Terms,
    /// Length of a row.
    pub period: Period,
    /// What was asked for.
    pub asked: Span,
    /// Whose it is: more than one where several groups have the port that was asked for.
    pub subjects: Vec<Who>,
    /// One for each layer in which anything was booked.
    pub series: Vec<Series>,
}

/// The spans of a history's rows: the periods of what was asked for, as far as the ledger reaches.
///
/// What lies before the first booking and in the future is not known, so there is no row of it.
pub fn rows(calendar: &Calendar, period: Period, asked: Span, extent: Span, now: i64) -> Vec<Row> {
    // The last booking may be a while ago: since then nothing was booked, which is known.
    let known = Span { begin: extent.begin, end: extent.end.max(now.saturating_add(1)) };
    let first = calendar.period(period, known.begin).begin;
    let reached = asked.within(Span { begin: first, end: known.end });
    calendar
        .periods(period, reached)
        .map(|whole| Row {
            span: whole.within(asked),
            period: whole,
            running: whole.contains(now),
            usage: None,
        })
        .collect()
}

/// Fills rows with what was booked in each of their spans, and makes a series of each layer.
///
/// `booked` has one list for each row; a layer stands in it at most once a subject.
pub fn series(rows: &[Row], booked: &[Vec<Usage>]) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for usage in booked.iter().flatten() {
        if !all.iter().any(|series| series.layer == usage.layer) {
            let total = Usage {
                layer: usage.layer,
                traffic: Traffic::default(),
                coverage: Coverage::Complete,
            };
            all.push(Series { layer: usage.layer, rows: rows.to_vec(), total });
        }
    }
    all.sort_by_key(|series| rank(series.layer));
    for series in &mut all {
        for (row, booked) in series.rows.iter_mut().zip(booked) {
            for usage in booked.iter().filter(|usage| usage.layer == series.layer) {
                row.usage = Some(row.usage.map_or(*usage, |sum| sum.plus(*usage)));
                series.total = series.total.plus(*usage);
            }
        }
    }
    all
}

/// The order in which layers are shown.
pub const fn rank(layer: Layer) -> u8 {
    match layer {
        Layer::Payload => 0,
        Layer::L3 => 1,
        Layer::Wire => 2,
        Layer::L3Skb => 3,
    }
}

impl Usage {
    /// Both of the same layer together, as good as the worse of them.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            layer: self.layer,
            traffic: self.traffic.plus(other.traffic),
            coverage: self.coverage.max(other.coverage),
        }
    }
}

/// What is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Users, by payload and by their share of the wire.
    Users,
    /// Groups, by name.
    Groups,
    /// The same, by ports.
    Ports,
}

impl Field {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Groups => "groups",
            Self::Ports => "ports",
        }
    }
}

impl By {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Who moved most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopReport {
    /// Seconds of Unix time.
    pub taken_at: i64,
    /// Name of this host.
    pub host: String,
    /// How it is to be shown.
    pub terms: Terms,
    /// What is ranked.
    pub field: Field,
    /// By what.
    pub by: By,
    /// When.
    pub span: Span,
    /// One for each layer.
    pub rankings: Vec<(Layer, Ranking)>,
}

/// Today, this billing month, and since ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Today in the calendar of the report.
    pub today: Vec<Usage>,
    /// This billing month.
    pub billing: Vec<Usage>,
    /// Since the ledger began.
    pub ever: Vec<Usage>,
}

/// One subject of a summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingLine {
    /// Who.
    pub who: Who,
    /// How it stands.
    pub standing: Standing,
}

/// The short report: how everybody stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryReport {
    /// Seconds of Unix time.
    pub taken_at: i64,
    /// Name of this host.
    pub host: String,
    /// How it is to be shown.
    pub terms: Terms,
    /// Today.
    pub today: Span,
    /// This billing month.
    pub billing: Span,
    /// From the first booking to the end of the last; `None` for an empty ledger.
    pub extent: Option<Span>,
    /// The host, its relay, and its groups.
    pub lines: Vec<StandingLine>,
    /// The users with most payload in this billing month, the largest first.
    pub users: Vec<StandingLine>,
    /// How many users moved anything in this billing month.
    pub active_users: usize,
    /// All bytes of the host in each hour of today, the oldest first, in the layer that comes first.
    pub hours: Vec<u64>,
    /// What happened last, the oldest first.
    pub events: Vec<Event>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn usage(layer: Layer, input_bytes: u64, coverage: Coverage) -> Usage {
        Usage { layer, traffic: Traffic { input_bytes, ..Traffic::default() }, coverage }
    }

    #[test]
    fn what_the_ledger_does_not_reach_has_no_row() {
        let utc = Calendar::default();
        let asked = Span { begin: 0, end: 10 * HOUR };
        let extent = Span { begin: 2 * HOUR + 300, end: 4 * HOUR };
        let rows = rows(&utc, Period::Hour, asked, extent, 6 * HOUR + 1);
        let begin: Vec<_> = rows.iter().map(|row| row.span.begin / HOUR).collect();
        assert_eq!(begin, [2, 3, 4, 5, 6]);
        let running: Vec<_> = rows.iter().map(|row| row.running).collect();
        assert_eq!(running, [false, false, false, false, true]);
    }

    #[test]
    fn a_row_is_cut_to_what_was_asked_for_and_knows_its_period() {
        let utc = Calendar::default();
        let asked = Span { begin: HOUR / 2, end: 3 * HOUR / 2 };
        let rows = rows(&utc, Period::Hour, asked, Span::ALL, 9 * HOUR);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].span, Span { begin: HOUR / 2, end: HOUR });
        assert_eq!(rows[1].span, Span { begin: HOUR, end: 3 * HOUR / 2 });
        assert_eq!(rows[1].period, Span { begin: HOUR, end: 2 * HOUR });
    }

    #[test]
    fn each_layer_is_a_series_of_its_own_and_nothing_booked_is_no_zero() {
        let utc = Calendar::default();
        let asked = Span { begin: 0, end: 3 * HOUR };
        let rows = rows(&utc, Period::Hour, asked, asked, 9 * HOUR);
        let booked = [
            vec![usage(Layer::L3, 5, Coverage::Complete)],
            vec![],
            vec![
                usage(Layer::L3, 7, Coverage::Gap),
                usage(Layer::Payload, 3, Coverage::Complete),
                // Of a second group with the same port.
                usage(Layer::L3, 1, Coverage::Complete),
            ],
        ];
        let series = series(&rows, &booked);
        let bytes = |series: &Series| {
            let of = |row: &Row| row.usage.map(|usage| usage.traffic.input_bytes);
            series.rows.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(series.len(), 2);
        assert_eq!(series[0].layer, Layer::Payload);
        assert_eq!(bytes(&series[0]), [None, None, Some(3)]);
        assert_eq!(bytes(&series[1]), [Some(5), None, Some(8)]);
        assert_eq!(series[1].total, usage(Layer::L3, 13, Coverage::Gap));
        assert_eq!(series[1].largest(Counting::Both), 8);
    }
}
