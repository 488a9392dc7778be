//! From when to when: what a person writes behind `--from`, `--to` and `--last`.

use std::str::FromStr;

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::{AmbiguousOffset, TimeZone},
};

use super::{Calendar, LIMITS, Period, Span, offset_zone};
use crate::accounting::ident::shown;

/// Most periods that can be looked back: more than 100 years of days.
const MOST: u32 = 40_000;

/// The present period of a kind and those before it: `30d` is today and the 29 days before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// How many, at least 1.
    pub count: u32,
    /// Of which kind.
    pub period: Period,
}

/// Why a text is no time to look back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LastError {
    /// No number, or no unit.
    #[error(
        "`{0}` is no time: write a number and min, h, d, w, mo or y, such as 30d, 12h, 4w or 6mo"
    )]
    Text(String),
    /// Minutes or months.
    #[error("`{0}` may be minutes or months: write {0}in or {0}o")]
    Which(String),
    /// Nothing at all.
    #[error("`{0}` is no time at all: write at least 1, as in 1d for today")]
    Zero(String),
    /// Longer than anything was counted.
    #[error(
        "`{0}` is too long: at most {MOST} minutes, hours, days, weeks or months can be asked for"
    )]
    TooLong(String),
}

impl FromStr for Last {
    type Err = LastError;

    fn from_str(text: &str) -> Result<Self, LastError> {
        let text = text.trim();
        let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (period, times, by) = match unit.trim_start() {
            "min" => (Period::Minutes, 1, 5),
            "h" => (Period::Hour, 1, 1),
            "d" => (Period::Day, 1, 1),
            "w" => (Period::Week, 1, 1),
            "mo" => (Period::Month, 1, 1),
            "y" => (Period::Month, 12, 1),
            "m" if !number.is_empty() => return Err(LastError::Which(shown(text))),
            _ => return Err(LastError::Text(shown(text))),
        };
        if number.is_empty() {
            return Err(LastError::Text(shown(text)));
        }
        // Nothing but digits, so `parse` fails only when the number is too large.
        let count: u32 = number
            .parse()
            .ok()
            .and_then(|count: u32| count.checked_mul(times))
            .filter(|count| *count <= MOST)
            .ok_or_else(|| LastError::TooLong(shown(text)))?;
        if count == 0 {
            return Err(LastError::Zero(shown(text)));
        }
        Ok(Self { count: count.div_ceil(by), period })
    }
}

/// Why there is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a date as we read them.
    #[error(
        "{option}: `{text}` is no date: write 2026-11-24, 2026-11-24T13:00, 2026-11, 2026-W48, today or yesterday"
    )]
    Date {
        /// Behind which option.
        option: &'static str,
        /// What it says.
        text: String,
    },
    /// A day, week or time that no calendar has.
    #[error("{option}: `{text}` does not exist: {why}")]
    Absent {
        /// Behind which option.
        option: &'static str,
        /// What it says.
        text: String,
        /// What there is instead.
        why: String,
    },
    /// The end lies before the beginning.
    #[error(
        "the range is the wrong way round: --from {from} is not before --to {to}: exchange the two"
    )]
    Backwards {
        /// Where it begins, as it was typed.
        from: String,
        /// Where it ends, likewise.
        to: String,
    },
    /// It ends where it begins.
    #[error("nothing lies between --from {from} and --to {to}: write a later end")]
    Nothing {
        /// Where it begins, as it was typed.
        from: String,
        /// Where it ends, likewise.
        to: String,
    },
    /// The beginning has not come yet.
    #[error("--from {from} has not come yet (now it is {now}): write an earlier date")]
    Future {
        /// Where it begins, as it was typed.
        from: String,
        /// The present, as a clock shows it.
        now: String,
    },
    /// `--last` beside another beginning or end.
    #[error("--last already says from when to when: leave out --from and --to, or --last")]
    Twice,
}

/// What was asked for, as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `--from`.
    pub from: Option<String>,
    /// `--to`: a date, week or month is in the range with its whole length, a time is where it ends.
    pub to: Option<String>,
    /// `--last`.
    pub last: Option<Last>,
}

impl Asked {
    /// The range; `usual` where nothing was asked for, and until now where no end was.
    ///
    /// # Errors
    ///
    /// [`RangeError`].
    pub fn range(&self, calendar: &Calendar, usual: Last, now: i64) -> Result<Span, RangeError> {
        if self.last.is_some() && (self.from.is_some() || self.to.is_some()) {
            return Err(RangeError::Twice);
        }
        let past = |last: Last, at| calendar.last(last.period, last.count, at);
        let to = match &self.to {
            Some(text) => Some((text, moment(calendar, "--to", text, now)?)),
            None => None,
        };
        let end = to.map(|(_, to)| to.end);
        let Some(text) = &self.from else {
            let until = end.unwrap_or(now);
            // The second before the end is in the last period that is asked for.
            let at = if end.is_some() { until - 1 } else { now };
            let span = past(self.last.unwrap_or(usual), at);
            return Ok(Span { end: end.unwrap_or(span.end), ..span });
        };
        let from = moment(calendar, "--from", text, now)?.begin;
        let until = end.unwrap_or_else(|| calendar.period(Period::Minutes, now).end);
        if from < until {
            return Ok(Span { begin: from, end: until });
        }
        let typed = shown(text.trim());
        Err(match to {
            Some((to, span)) if from == span.begin => {
                RangeError::Nothing { from: typed, to: shown(to.trim()) }
            }
            Some((to, _)) => RangeError::Backwards { from: typed, to: shown(to.trim()) },
            None => RangeError::Future { from: typed, now: calendar.clock(now) },
        })
    }
}

/// The time that a text names: a day, week or month from its beginning to its end, or an instant.
fn moment(
    calendar: &Calendar,
    option: &'static str,
    typed: &str,
    now: i64,
) -> Result<Span, RangeError> {
    let text = typed.trim();
    let no_date = || RangeError::Date { option, text: shown(typed) };
    let absent = |why: String| RangeError::Absent { option, text: shown(typed), why };
    match text {
        "now" => return Ok(Span { begin: now, end: now }),
        "today" => return Ok(calendar.period(Period::Day, now)),
        "yesterday" => {
            let today = calendar.period(Period::Day, now);
            return Ok(calendar.period(Period::Day, today.begin - 1));
        }
        _ => {}
    }
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let parts: Vec<&str> = date.split('-').collect();
    let (year, rest) = parts.split_first().ok_or_else(no_date)?;
    let year: i16 = number(year, 4).ok_or_else(no_date)?;
    if !(1..=9998).contains(&year) {
        return Err(absent("write a year from 0001 to 9998".to_owned()));
    }
    let (date, period) = match *rest {
        [month, day] => {
            let month = number(month, 2).ok_or_else(no_date)?;
            let day: i8 = number(day, 2).ok_or_else(no_date)?;
            let first = Date::new(year, month, 1)
                .map_err(|_| absent("a year has months 01 to 12".to_owned()))?;
            let days = first.days_in_month();
            let why = || absent(format!("{year:04}-{month:02} has days 01 to {days:02}"));
            (Date::new(year, month, day).map_err(|_| why())?, Period::Day)
        }
        [week] if week.starts_with(['W', 'w']) => {
            let week: i8 = number(&week[1..], 2).ok_or_else(no_date)?;
            let date = jiff::civil::ISOWeekDate::new(year, week, jiff::civil::Weekday::Monday);
            let why = |_| absent(format!("{year:04} has weeks W01 to W{:02}", weeks(year)));
            (date.map_err(why)?.date(), Period::Week)
        }
        [month] => {
            let month = number(month, 2).ok_or_else(no_date)?;
            let first = Date::new(year, month, 1);
            let why = |_| absent("a year has months 01 to 12".to_owned());
            (first.map_err(why)?, Period::Month)
        }
        _ => return Err(no_date()),
    };
    let Some(time) = time else {
        let midnight = DateTime::from_parts(date, Time::midnight());
        return match calendar.zone().to_timestamp(midnight) {
            Ok(at) => Ok(calendar.period(period, at.as_second())),
            Err(_) => Err(no_date()),
        };
    };
    if period != Period::Day {
        return Err(no_date());
    }
    let (time, zone) = time_and_zone(time).ok_or_else(no_date)?;
    let time = clock(time).ok_or_else(no_date)?.map_err(|why| absent(why.to_owned()))?;
    let local = DateTime::from_parts(date, time);
    let zone = zone.as_ref().unwrap_or(calendar.zone());
    let ambiguous = zone.to_ambiguous_timestamp(local);
    if let AmbiguousOffset::Gap { before, after } = ambiguous.offset() {
        let name = calendar.zone_name();
        return Err(absent(format!("in {name} the clock was put from {before} to {after} there")));
    }
    // A time that comes twice begins with the first and ends with the second.
    let earlier = ambiguous.earlier().map(Timestamp::as_second);
    let later = ambiguous.later().map(Timestamp::as_second);
    match (earlier, later) {
        (Ok(from), Ok(until)) if from >= LIMITS.0 && until <= LIMITS.1 => {
            Ok(Span { begin: from, end: until })
        }
        _ => Err(no_date()),
    }
}

/// How many ISO weeks a year has.
fn weeks(year: i16) -> i8 {
    // 28 December is in the last week of every year.
    Date::new(year, 12, 28).map_or(52, |date| date.iso_week_date().week())
}

/// A number of exactly so many digits.
fn number<T: FromStr>(text: &str, digits: usize) -> Option<T> {
    let right = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| text.parse().ok()).flatten()
}

/// Splits off `Z` or an offset.
fn time_and_zone(text: &str) -> Option<(&str, Option<TimeZone>)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time, Some(TimeZone::UTC)));
    }
    match text.find(['+', '-']) {
        None => Some((text, None)),
        Some(at) => Some((&text[..at], Some(offset_zone(&text[at..])?))),
    }
}

/// `13:00` or `13:00:59`; `None` for another text, an error for a time that no clock shows.
fn clock(text: &str) -> Option<Result<Time, &'static str>> {
    let parts: Vec<i8> = text.split(':').map(|part| number(part, 2)).collect::<Option<_>>()?;
    let (hour, minute, second) = match *parts {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let time = Time::new(hour, minute, second, 0);
    Some(time.map_err(|_| "a day has the times 00:00 to 23:59"))
}

#[cfg(test)]
mod tests;
