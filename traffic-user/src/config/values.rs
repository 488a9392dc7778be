//! Values of the file that are more than a text or a switch: each is checked where it is read.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo, tz::TimeZone};
use toml::de::DeValue;

use super::text;
use crate::accounting::{
    period::{Counting, Unit},
    retention::Keep,
};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Least time that buckets of 5 minutes are kept: an hour is made of them.
pub(super) const LEAST_MINUTES: Duration = HOUR;
/// Least time that buckets of an hour are kept: a day is made of them.
pub(super) const LEAST_HOURS: Duration = DAY;
/// Least time that buckets of a day are kept: the billing month before this one is made of them.
pub(super) const LEAST_DAYS: Duration = Duration::from_secs(62 * 24 * 3600);

/// What `run` writes at each tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A table that is drawn again.
    Table,
    /// One JSON document a line.
    Json,
    /// Nothing.
    None,
}

impl Output {
    const ALL: [Self; 3] = [Self::Table, Self::Json, Self::None];

    /// As it is written: `table`, `json` or `none`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::None => "none",
        }
    }
}

/// Reads a time between ticks, such as `500ms`, `10s` or `1m`.
///
/// # Errors
///
/// What to write instead.
pub fn interval(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|_| "write a time such as 500ms, 10s or 1m".to_owned())?;
    let duration = Duration::try_from(parsed).map_err(|_| "a time is not negative".to_owned())?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err("a tick takes 10ms to 24h".to_owned())
    }
}

/// Reads how long something is kept: `48h`, `60d`, `8w` or `forever`. A day has 24 hours.
pub(super) fn keep(text: &str, least: Duration) -> Result<Keep, String> {
    if text == "forever" {
        return Ok(Keep::Forever);
    }
    let asked = text.parse::<Span>().ok();
    let asked = asked.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    let asked = asked.ok_or("write a time such as 48h, 60d or 8w, or forever")?;
    let kept = Duration::try_from(asked).map_err(|_| "a time is not negative".to_owned())?;
    if kept < least {
        return Err(format!("keep at least {}", written(least)));
    }
    Ok(Keep::For(kept))
}

/// A time as [`keep`] reads it.
pub(super) fn written(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        _ if seconds.is_multiple_of(DAY.as_secs()) => format!("{}d", seconds / DAY.as_secs()),
        _ if seconds.is_multiple_of(HOUR.as_secs()) => format!("{}h", seconds / HOUR.as_secs()),
        _ => format!("{seconds}s"),
    }
}

/// Reads a name of the IANA time zone database.
pub(super) fn time_zone(name: &str) -> Result<TimeZone, String> {
    let zone = TimeZone::get(name).ok().filter(|zone| !zone.is_unknown());
    zone.ok_or_else(|| {
        "no time zone: write a name such as Europe/Berlin, Asia/Shanghai or UTC".into()
    })
}

/// Reads a day of the month.
pub(super) fn day(value: &DeValue<'_>) -> Result<u8, String> {
    let day = match value {
        DeValue::Integer(day) => u8::from_str_radix(day.as_str(), day.radix()).ok(),
        _ => None,
    };
    day.filter(|day| (1..=31).contains(day)).ok_or_else(|| "write a day from 1 to 31".to_owned())
}

/// Reads one of a few words.
fn word<T: Copy>(value: &DeValue<'_>, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let written = text(value)?;
    let found = all.iter().copied().find(|one| name(*one) == written);
    found.ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("write one of {}", names.join(", "))
    })
}

pub(super) fn counting(value: &DeValue<'_>) -> Result<Counting, String> {
    word(value, &Counting::ALL, Counting::name)
}

pub(super) fn unit(value: &DeValue<'_>) -> Result<Unit, String> {
    word(value, &Unit::ALL, Unit::name)
}

pub(super) fn output(value: &DeValue<'_>) -> Result<Output, String> {
    word(value, &Output::ALL, Output::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn days(days: u64) -> Duration {
        Duration::from_secs(days * 24 * 3600)
    }

    #[test]
    fn a_time_to_keep_has_days_and_weeks_and_no_months() {
        for (text, want) in [
            ("2d", Keep::For(days(2))),
            ("48h", Keep::For(days(2))),
            ("8w", Keep::For(days(56))),
            ("1d 12h", Keep::For(days(1) + 12 * HOUR)),
            ("400 days", Keep::For(days(400))),
            ("forever", Keep::Forever),
        ] {
            assert_eq!(keep(text, HOUR), Ok(want), "{text}");
        }
        for text in ["", "2", "2x", "3 months", "1y", "for ever", "-2d", "2d x"] {
            assert!(keep(text, HOUR).is_err(), "{text}");
        }
        assert_eq!(keep("0d", HOUR), Err("keep at least 1h".to_owned()));
        assert_eq!(keep("61d", LEAST_DAYS), Err("keep at least 62d".to_owned()));
        assert_eq!(keep("62d", LEAST_DAYS), Ok(Keep::For(days(62))));
    }

    #[test]
    fn a_time_is_written_as_it_is_read() {
        for text in ["2d", "36h", "60d", "5400s"] {
            let Ok(Keep::For(time)) = keep(text, HOUR) else { panic!("{text} is not read") };
            assert_eq!(written(time), text);
        }
    }

    #[test]
    fn only_names_of_the_database_are_time_zones() {
        for name in ["UTC", "Europe/Berlin", "Asia/Shanghai", "America/St_Johns"] {
            assert_eq!(time_zone(name).unwrap().iana_name(), Some(name));
        }
        for name in ["", "Mars/Olympus", "+08:00", "CET-1CEST", "../../etc/passwd", "Etc/Unknown"] {
            assert!(time_zone(name).is_err(), "{name}");
        }
    }
}
