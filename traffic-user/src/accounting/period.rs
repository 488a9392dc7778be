//! Hours, days, weeks and months as people and providers mean them: in a time zone.
//!
//! An instant is a whole number of seconds of Unix time. Every period begins where the one before it
//! ended, so each instant is in exactly one period of a kind, also where the clock is changed: a day
//! may have 23 or 25 hours, and an hour that comes twice is two hours.

pub mod range;

use std::fmt;

use jiff::{
    Timestamp,
    civil::{Date, DateTime, ISOWeekDate, Weekday},
    tz::{AmbiguousOffset, Offset, TimeZone},
};

pub use super::billing::{Counting, Unit};
use super::ident::shown;
pub use super::usage::Span;

const MINUTES: i64 = 300;
const HOUR: i64 = 3600;

/// The first instant of the year 1 and the last of the year 9998: what is outside is taken for these.
const LIMITS: (i64, i64) = (-62_135_596_800, 253_370_764_799);

/// A kind of period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// Five minutes, the finest that is kept.
    Minutes,
    /// An hour of the clock.
    Hour,
    /// From midnight to midnight.
    Day,
    /// An ISO week: from Monday on.
    Week,
    /// A month of the calendar.
    Month,
    /// A month that begins on the provider's day.
    Billing,
}

impl Period {
    /// Every kind, the shortest first.
    pub const ALL: [Self; 6] =
        [Self::Minutes, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Billing];

    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minutes => "5min",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Billing => "billing",
        }
    }
}

impl Span {
    /// Whether no time is in it.
    pub const fn is_empty(self) -> bool {
        self.end <= self.begin
    }

    /// What both have in common; empty where that is nothing.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self { begin: self.begin.max(other.begin), end: self.end.min(other.end) }
    }

    /// Its length.
    pub const fn seconds(self) -> u64 {
        if self.is_empty() { 0 } else { self.end.abs_diff(self.begin) }
    }
}

/// A day on which no billing month can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a billing month cannot begin on day {0}: write a day from 1 to 31")]
pub struct BillingDayError(pub u8);

/// Why a text is no time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no time zone: write a name such as Europe/Berlin or Asia/Shanghai, UTC, or an offset such as +03:30"
)]
pub struct ZoneError(pub String);

/// Reads a time zone: a name of the IANA database, or an offset such as `+08:00` or `UTC+8`.
///
/// Where the system has no database, the one that was built in is used.
///
/// # Errors
///
/// [`ZoneError`].
pub fn zone(text: &str) -> Result<TimeZone, ZoneError> {
    let wrong = || ZoneError(shown(text));
    let offset = text.strip_prefix("UTC").filter(|rest| !rest.is_empty()).unwrap_or(text);
    if offset.starts_with(['+', '-']) {
        return offset_zone(offset).ok_or_else(wrong);
    }
    TimeZone::get(text).ok().filter(|zone| !zone.is_unknown()).ok_or_else(wrong)
}

/// `+8`, `+08`, `+0830` or `+08:30`, at most 18 hours.
fn offset_zone(text: &str) -> Option<TimeZone> {
    let (sign, text) = (if text.starts_with('-') { -1 } else { 1 }, &text[1..]);
    let (hours, minutes) = match text.split_once(':') {
        Some((hours, minutes)) => (hours, minutes),
        None if text.len() == 4 && text.is_ascii() => text.split_at(2),
        None => (text, "00"),
    };
    let number = |text: &str, lengths: &[usize]| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        (digits && lengths.contains(&text.len())).then(|| text.parse::<i32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours, &[1, 2])?, number(minutes, &[2])?);
    if minutes > 59 || hours * 60 + minutes > 18 * 60 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().map(TimeZone::fixed)
}

/// Where a day begins, and when a month is billed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    zone: TimeZone,
    billing_day: u8,
}

impl Default for Calendar {
    /// UTC, and billing months that begin on day 1.
    fn default() -> Self {
        Self { zone: TimeZone::UTC, billing_day: 1 }
    }
}

impl Calendar {
    /// A billing month begins on `billing_day`, and where a month has no such day, on its last one: with
    /// day 31 those of 2026 begin on 31 January, 28 February, 31 March, 30 April.
    ///
    /// # Errors
    ///
    /// [`BillingDayError`] for a day that no month has.
    pub fn new(zone: TimeZone, billing_day: u8) -> Result<Self, BillingDayError> {
        if (1..=31).contains(&billing_day) {
            Ok(Self { zone, billing_day })
        } else {
            Err(BillingDayError(billing_day))
        }
    }

    /// Its time zone.
    pub const fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// On which day a billing month begins.
    pub const fn billing_day(&self) -> u8 {
        self.billing_day
    }

    /// The zone as outputs write it: its name, or its offset.
    pub fn zone_name(&self) -> String {
        match self.zone.iana_name() {
            Some(name) => name.to_owned(),
            None => self.zone.to_offset(Timestamp::UNIX_EPOCH).to_string(),
        }
    }

    /// The period of a kind in which an instant is.
    pub fn period(&self, period: Period, at: i64) -> Span {
        let at = at.clamp(LIMITS.0, LIMITS.1);
        match period {
            Period::Minutes => self.of_clock(MINUTES, at),
            Period::Hour => self.of_clock(HOUR, at),
            Period::Day | Period::Week | Period::Month | Period::Billing => {
                self.of_dates(period, at)
            }
        }
    }

    /// The periods of a kind that a span of time touches, whole, in their order.
    pub fn periods(&self, period: Period, span: Span) -> Periods<'_> {
        Periods { calendar: self, period, span, whole: true }
    }

    /// A span of time cut where periods of a kind begin: the parts put together are the span again.
    pub fn split(&self, period: Period, span: Span) -> Periods<'_> {
        Periods { calendar: self, period, span, whole: false }
    }

    /// The period of a kind in which an instant is and those before it, `count` of them together.
    pub fn last(&self, period: Period, count: u32, at: i64) -> Span {
        let present = self.period(period, at);
        let mut from = present.begin;
        for _ in 1..count {
            if from <= LIMITS.0 {
                break;
            }
            from = self.period(period, from - 1).begin;
        }
        Span { begin: from, end: present.end }
    }

    /// Parts of an hour: they end where the clock is changed in between.
    fn of_clock(&self, length: i64, at: i64) -> Span {
        let offset = self.offset(at);
        let from = at - (at + offset).rem_euclid(length);
        let until = from + length;
        let changed = |transition: Option<i64>, other: i64| transition.unwrap_or(other);
        Span {
            begin: if self.offset(from) == offset {
                from
            } else {
                changed(self.change_before(at + 1), from)
            },
            end: if self.offset(until - 1) == offset {
                until
            } else {
                changed(self.change_after(at), until)
            },
        }
    }

    /// Whole days: they begin at the first midnight of their date.
    fn of_dates(&self, period: Period, at: i64) -> Span {
        let first = self.first(period, self.local(at).date());
        let (mut from, mut next) = (self.midnight(first), self.next(period, first));
        let mut until = self.midnight(next);
        // Where the clock is set back over midnight, the evening of the day before comes once more: it
        // belongs to the day that has begun.
        if until <= at {
            next = self.next(period, next);
            (from, until) = (until, self.midnight(next));
        }
        Span { begin: from, end: until }
    }

    /// The date on which the period begins that has `date` in it.
    fn first(&self, period: Period, date: Date) -> Date {
        match period {
            Period::Minutes | Period::Hour | Period::Day => date,
            Period::Week => {
                let days = i64::from(date.weekday().to_monday_zero_offset());
                date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date)
            }
            Period::Month => date.first_of_month(),
            Period::Billing => {
                let this = self.billing_start(date);
                if this <= date {
                    return this;
                }
                self.billing_start(date.first_of_month().yesterday().unwrap_or(date))
            }
        }
    }

    /// The date on which the period after that of `first` begins.
    fn next(&self, period: Period, first: Date) -> Date {
        let days = match period {
            Period::Minutes | Period::Hour | Period::Day => 1,
            Period::Week => 7,
            Period::Month | Period::Billing => {
                let next = first.last_of_month().tomorrow().unwrap_or(first);
                return if period == Period::Month { next } else { self.billing_start(next) };
            }
        };
        first.checked_add(jiff::Span::new().days(days)).unwrap_or(first)
    }

    /// On which date of a month its billing month begins.
    fn billing_start(&self, month: Date) -> Date {
        // A billing day is at most 31.
        let day = i8::try_from(self.billing_day).unwrap_or(31).min(month.days_in_month());
        month.with().day(day).build().unwrap_or(month)
    }

    /// The first instant of a date; of one that was left out, of the one that came in its place.
    fn midnight(&self, date: Date) -> i64 {
        let midnight = date.to_datetime(jiff::civil::Time::midnight());
        self.zone.to_timestamp(midnight).map_or(LIMITS.1, Timestamp::as_second)
    }

    fn local(&self, at: i64) -> DateTime {
        self.zone.to_datetime(timestamp(at))
    }

    fn offset(&self, at: i64) -> i64 {
        i64::from(self.zone.to_offset(timestamp(at)).seconds())
    }

    fn change_before(&self, at: i64) -> Option<i64> {
        self.zone.preceding(timestamp(at)).next().map(|change| change.timestamp().as_second())
    }

    fn change_after(&self, at: i64) -> Option<i64> {
        self.zone.following(timestamp(at)).next().map(|change| change.timestamp().as_second())
    }

    /// How people call a period: `2026-11-24 13:00`, `2026-11-24`, `2026-W48`, `2026-11`, and for a billing
    /// month its first date. An hour that comes twice says its offset.
    pub fn label(&self, period: Period, from: i64) -> String {
        let local = self.local(from);
        match period {
            Period::Minutes | Period::Hour => {
                let offset = self.zone.to_offset(timestamp(from));
                let ambiguous = self.zone.to_ambiguous_timestamp(local).offset();
                let twice = matches!(ambiguous, AmbiguousOffset::Fold { .. });
                let offset = if twice { format!(" {offset}") } else { String::new() };
                format!("{} {:02}:{:02}{offset}", local.date(), local.hour(), local.minute())
            }
            Period::Day | Period::Billing => local.date().to_string(),
            Period::Week => {
                let week: ISOWeekDate = local.date().iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Period::Month => format!("{:04}-{:02}", local.year(), local.month()),
        }
    }

    /// An instant as people read it here: date and time to the minute.
    pub fn clock(&self, at: i64) -> String {
        let local = self.local(at);
        format!("{} {:02}:{:02}", local.date(), local.hour(), local.minute())
    }

    /// The day of the week of a period's beginning, as `Mon`.
    pub fn weekday(&self, from: i64) -> &'static str {
        match self.local(from).weekday() {
            Weekday::Monday => "Mon",
            Weekday::Tuesday => "Tue",
            Weekday::Wednesday => "Wed",
            Weekday::Thursday => "Thu",
            Weekday::Friday => "Fri",
            Weekday::Saturday => "Sat",
            Weekday::Sunday => "Sun",
        }
    }
}

/// An instant as outputs write it: RFC 3339 in UTC.
pub fn utc(at: i64) -> impl fmt::Display {
    timestamp(at)
}

fn timestamp(at: i64) -> Timestamp {
    Timestamp::from_second(at.clamp(LIMITS.0, LIMITS.1)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Periods one after the other. See [`Calendar::periods`] and [`Calendar::split`].
#[derive(Clone, Debug)]
pub struct Periods<'a> {
    calendar: &'a Calendar,
    period: Period,
    /// What is left.
    span: Span,
    whole: bool,
}

impl Iterator for Periods<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.span.is_empty() {
            return None;
        }
        let whole = self.calendar.period(self.period, self.span.begin);
        let part = whole.within(self.span);
        // At the end of the calendar nothing comes after the last period.
        self.span.begin = if part.is_empty() { self.span.end } else { part.end };
        match (self.whole, part.is_empty()) {
            (true, false) => Some(whole),
            (false, false) => Some(part),
            (_, true) => None,
        }
    }
}

#[cfg(test)]
mod tests;
