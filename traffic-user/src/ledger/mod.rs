//! The ledger: totals that survive everything, in one SQLite file.
//!
//! One writer: the daemon, which holds the lock of its state folder and a [`Store`]. Any number of
//! [`Reader`]s in other processes, without root, while it writes. A tick is one transaction of buckets,
//! cursors and events, so that what is booked is always exactly what was counted up to the cursors.
//!
//! Traffic is booked into buckets of five minutes by the clock's time, wherever the clock stands.
//! When an hour has passed its buckets are summed up into one, and so are the hours of a day. Short
//! buckets go after a while, never before they are summed up, so totals stay what they are.

mod codec;
mod commit;
mod error;
mod file;
mod forest;
mod generate;
mod portions;
mod query;
mod rows;
mod schema;
mod store;
mod tidy;

use std::{fmt, sync::Arc};

pub use commit::Ledger;
pub use error::LedgerError;
pub use file::{FILE, path};
pub use generate::{Sample, generate};
pub use portions::Wanted;
pub use query::Reader;
pub use store::{Damaged, Opened, Store};
pub use tidy::Tidied;

use crate::accounting::{retention::Retention, usage::Span};

const MINUTES: i64 = 300;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// The day that holds a second, in the time zone of the reports.
#[derive(Clone)]
pub struct Calendar(Arc<dyn Fn(i64) -> Span + Send + Sync>);

impl Calendar {
    /// `day` gives for a second of Unix time the day that holds it. Days have to begin at whole five
    /// minutes of UTC, which they do in every time zone of today.
    pub fn new(day: impl Fn(i64) -> Span + Send + Sync + 'static) -> Self {
        Self(Arc::new(day))
    }

    /// Days of UTC.
    pub fn utc() -> Self {
        Self::new(|second| grid(second, DAY))
    }

    /// One that does not hold the second is the fault of who gave it: a day of UTC stands in.
    fn day(&self, second: i64) -> Span {
        let day = (self.0)(second);
        let sound = day.contains(second) && day.begin % MINUTES == 0 && day.end % MINUTES == 0;
        if sound { day } else { grid(second, DAY) }
    }

    /// Hours begin with the day; the last one may be short.
    fn hour(&self, second: i64) -> Span {
        let day = self.day(second);
        let begin = day.begin + (second - day.begin).div_euclid(HOUR) * HOUR;
        Span { begin, end: begin.saturating_add(HOUR).min(day.end) }
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calendar")
    }
}

impl Default for Calendar {
    fn default() -> Self {
        Self::utc()
    }
}

/// How the ledger is kept.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For how long.
    pub retention: Retention,
    /// What a day is.
    pub calendar: Calendar,
}

/// The span of a regular grid that holds a second.
fn grid(second: i64, length: i64) -> Span {
    let begin = second.div_euclid(length).saturating_mul(length);
    Span { begin, end: begin.saturating_add(length) }
}

#[cfg(test)]
mod tests;
