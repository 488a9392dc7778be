//! What a user's hour takes of the file: first in full, later as it is kept for good.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use traffic_user::{
    accounting::retention::{Keep, Retention},
    ledger::{Ledger, Options, Tidied},
};

use super::{
    super::{
        report::{Section, Table, Target},
        stats::number,
    },
    Books, Extent, HOURS, Pages,
};

/// Days for which hours are kept.
const HOURLY: u32 = 60;
/// Days for which buckets of five minutes are kept.
const FULL: u32 = 2;
const MOST_BYTES: f64 = 100.0;

/// Bytes in use, and of how many hours of users they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grown {
    /// With all that is kept of the last two days.
    full: u64,
    /// Without buckets of five minutes: what stays of it for 60 days.
    hourly: u64,
    /// Without those of hours.
    daily: u64,
    users: u32,
    days: u32,
}

/// Lets go of the short buckets, one kind after the other.
pub(super) fn measure(books: &Books) -> Result<Grown> {
    let folder = &books.folder.0;
    let none = Keep::For(Duration::ZERO);
    let in_use = || Pages::of(folder).map(Pages::in_use);
    let keep = |retention| {
        let options = Options { retention, ..Options::default() };
        let (mut ledger, _) = Ledger::open(folder, options)?;
        let mut gone = 0;
        // Free pages are counted apart, so that they need not be given back.
        while ledger.tidy(books.sample.end)? == Tidied::LetGo {
            gone += 1;
        }
        anyhow::Ok(gone)
    };
    let full = in_use()?;
    let gone = keep(Retention { minutes: none, ..Retention::default() })?;
    ensure!(gone == FULL * 24 * 12, "{gone} buckets of five minutes");
    let hourly = in_use()?;
    let gone = keep(Retention { minutes: none, hours: none, ..Retention::default() })?;
    ensure!(gone == HOURLY.min(books.sample.days) * 24, "{gone} buckets of an hour");
    let daily = in_use()?;
    Ok(Grown { full, hourly, daily, users: books.sample.users, days: books.sample.days })
}

impl Grown {
    /// Hours of all users in so many days.
    fn hours(&self, days: u32) -> f64 {
        f64::from(self.users) * f64::from(days.min(self.days)) * f64::from(HOURS)
    }

    /// Bytes of an hour of a user in the whole file, as it is kept for good.
    fn kept(&self) -> f64 {
        float(self.hourly) / self.hours(self.days)
    }

    /// Bytes that a user's hour adds for 60 days, when it is summed up.
    fn hour(&self) -> f64 {
        float(self.hourly - self.daily) / self.hours(HOURLY)
    }

    /// Bytes that a user's day adds for good.
    fn day(&self) -> f64 {
        float(self.daily) / (f64::from(self.users) * f64::from(self.days))
    }

    /// What the file grows by with an active hour of a user who has some of them in his days.
    fn growth(&self) -> f64 {
        self.hour() + self.day() / f64::from(HOURS)
    }

    /// Bytes that a user's hour takes for two days beside.
    fn minutes(&self) -> f64 {
        float(self.full - self.hourly) / self.hours(FULL)
    }

    /// Bytes that a day of a user takes in a file that is never larger than it is now.
    pub(super) fn of_a_user(&self) -> f64 {
        float(self.full) / f64::from(self.users)
    }
}

fn float(bytes: u64) -> f64 {
    u32::try_from(bytes >> 10).map_or(f64::MAX, f64::from) * 1024.0
}

/// What it says.
pub(super) fn report(extent: Extent, grown: &Grown) -> Section {
    let users = number(extent.users.into());
    let mib = |bytes: u64| number(float(bytes) / 1024.0 / 1024.0);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let rows = vec![
        row(
            "an active hour in all of the file, long term: days, and hours of 60 days",
            number(grown.kept()),
        ),
        row(
            "what an active hour adds when it is over: its hour, and its share of the day",
            number(grown.growth()),
        ),
        row("of it the hour, for 60 days", number(grown.hour())),
        row("a day of a user, for good", number(grown.day())),
        row(
            "an active hour in buckets of five minutes, for two days beside",
            number(grown.minutes()),
        ),
    ];
    let sizes = vec![
        row("days alone", mib(grown.daily)),
        row("days, and hours of 60 days", mib(grown.hourly)),
        row("and five minutes of two days: the whole file", mib(grown.full)),
        row("of it the five minutes, which are as many at any age", mib(grown.full - grown.hourly)),
    ];
    Section {
        name: "ledger-size",
        title: "Size of the ledger".to_owned(),
        method: format!(
            "The ledger of the questions: {users} users, {} days, {HOURS} active hours a day, payload and \
             share of the wire of each. Pages in use (of the file's own head) before and after the \
             buckets of five minutes are let go, then those of an hour. Long term an active hour is a \
             part of a day's two rows and, for 60 days, two rows of its own; that is what the target is \
             about. For the first two days its twelve parts are kept as well: that is several times as \
             much, and a constant of the file, because what comes takes the place of what goes. Rows \
             were written in the order of their keys, as sums are; buckets of five minutes whose users \
             come one after the other have pages that are less full. The log beside the file is at most \
             16 MiB.",
            extent.days
        ),
        tables: vec![
            Table {
                title: "Bytes by user".to_owned(),
                head: ["", "bytes"].map(str::to_owned).to_vec(),
                rows,
            },
            Table {
                title: "The file".to_owned(),
                head: ["what is kept", "MiB"].map(str::to_owned).to_vec(),
                rows: sizes,
            },
        ],
        charts: Vec::new(),
        json: json!({
            "users": grown.users,
            "days": grown.days,
            "active_hours_a_day": HOURS,
            "full_bytes": grown.full,
            "without_minutes_bytes": grown.hourly,
            "days_alone_bytes": grown.daily,
            "bytes_per_user_and_active_hour_long_term": round(grown.kept()),
            "bytes_per_user_and_active_hour_added": round(grown.growth()),
            "bytes_per_user_and_active_hour_in_five_minutes": round(grown.minutes()),
            "bytes_per_user_and_day": round(grown.day()),
        }),
        targets: vec![Target {
            promise: "ledger: growth at most 100 bytes for a user and active hour".to_owned(),
            measured: format!(
                "{} when the hour is over, {} long term; {} more for two days ({} MiB of the file)",
                number(grown.growth()),
                number(grown.kept()),
                number(grown.minutes()),
                mib(grown.full - grown.hourly)
            ),
            kept: grown.growth() <= MOST_BYTES && grown.kept() <= MOST_BYTES,
        }],
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
