//! What history, rankings and summaries say, complete before anything is written.
//!
//! A subject may have numbers of several layers. Each is a [`Series`] or [`Ranking`] of its own: they
//! stand side by side and are never added.

use std::{collections::BTreeMap, sync::Arc};

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
    /// What is paid for of all of it, where that can be told.
    ///
    /// A bill is of a billing month, and the larger direction of two of them is not that of both together. So
    /// where that is what counts, months are added up as they stand in the rows, and shorter periods by the
    /// billing month that each of them is in. A week that is in two of them is paid for in neither: then it
    /// is not known.
    pub fn billed(&self, terms: &Terms, period: Period) -> Option<u64> {
        let Terms { calendar, counting, .. } = terms;
        if *counting != Counting::Larger {
            return Some(counting.of(self.total.traffic));
        }
        let month = |at| calendar.period(Period::Billing, at);
        let mut bills: BTreeMap<i64, Traffic> = BTreeMap::new();
        for row in &self.rows {
            let Some(usage) = row.usage else { continue };
            let bill = match period {
                Period::Month | Period::Billing => row.period,
                Period::Minutes | Period::Hour | Period::Day | Period::Week => {
                    month(row.span.begin)
                }
            };
            if period == Period::Week && !bill.contains(row.span.end - 1) {
                return None;
            }
            let sum = bills.entry(bill.begin).or_default();
            *sum = sum.plus(usage.traffic);
        }
        Some(bills.into_values().map(|sum| counting.of(sum)).fold(0, u64::saturating_add))
    }

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
    /// The same, billing month by billing month, where what is paid for is not the sum of them.
    pub months: Vec<Vec<Usage>>,
}

impl Standing {
    /// What is paid for since ever, of one layer: the sum of all bills.
    pub fn billed(&self, ever: Usage, counting: Counting) -> u64 {
        if counting != Counting::Larger {
            return counting.of(ever.traffic);
        }
        let bills = self.months.iter().flatten().filter(|usage| usage.layer == ever.layer);
        bills.map(|usage| counting.of(usage.traffic)).fold(0, u64::saturating_add)
    }
}

/// The billing months of which bills have to be added up one by one; none where what is paid for of all is that
/// of the sum.
pub fn bills(terms: &Terms, extent: Option<Span>) -> Vec<Span> {
    match extent {
        Some(extent) if terms.counting == Counting::Larger => {
            terms.calendar.periods(Period::Billing, extent).collect()
        }
        _ => Vec::new(),
    }
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

    /// What is billed in total of rows of a period: ten days with more input, then ten with more output.
    #[track_caller]
    fn billed(period: Period, billing_day: u8, asked: Span) -> Option<u64> {
        let terms = Terms {
            calendar: Calendar::new(jiff::tz::TimeZone::UTC, billing_day).unwrap(),
            counting: Counting::Larger,
            ..Terms::default()
        };
        let rows = rows(&terms.calendar, period, asked, asked, i64::MAX - 1);
        let turn = asked.begin + 10 * 24 * HOUR;
        let booked: Vec<_> = rows
            .iter()
            .map(|row| {
                let hours = |span: Span| span.seconds() / 3600;
                let before = hours(row.span.within(Span { end: turn, ..asked }));
                let traffic = Traffic {
                    input_bytes: 3 * before,
                    output_bytes: 4 * (hours(row.span) - before),
                    ..Traffic::default()
                };
                vec![Usage { layer: Layer::L3, traffic, coverage: Coverage::Complete }]
            })
            .collect();
        series(&rows, &booked)[0].billed(&terms, period)
    }

    #[test]
    fn the_larger_direction_is_billed_month_by_month() {
        const DAY: i64 = 24 * HOUR;
        // 2026-01-22 and twenty days: ten in January, ten in February.
        let asked = Span { begin: 1_769_040_000, end: 1_769_040_000 + 20 * DAY };
        let (input, output) = (3 * 240, 4 * 240);
        for period in [Period::Hour, Period::Day, Period::Month, Period::Billing] {
            assert_eq!(billed(period, 1, asked), Some(input + output), "{}", period.name());
        }
        // Of a billing month that has both, the larger direction alone is paid for.
        for period in [Period::Hour, Period::Day, Period::Week, Period::Billing] {
            assert_eq!(billed(period, 15, asked), Some(output), "{}", period.name());
        }
        // One of the weeks is in two billing months.
        assert_eq!(billed(Period::Week, 1, asked), None);
    }

    #[test]
    fn what_is_billed_since_ever_is_the_sum_of_the_months() {
        let both = |input_bytes, output_bytes| Usage {
            layer: Layer::L3,
            traffic: Traffic { input_bytes, output_bytes, ..Traffic::default() },
            coverage: Coverage::Complete,
        };
        let standing = Standing {
            ever: vec![both(11, 11)],
            months: vec![vec![both(10, 1)], vec![both(1, 10)]],
            ..Standing::default()
        };
        let billed = |counting| standing.billed(standing.ever[0], counting);
        assert_eq!([Counting::Both, Counting::Larger, Counting::Output].map(billed), [22, 20, 11]);
    }
}
