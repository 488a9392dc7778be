//! A ledger of many users over a long time, made at once: for tests and measurements.

use std::path::Path;

use super::{
    Calendar, DAY, HOUR, Ledger, LedgerError, MINUTES, Options,
    codec::{Book, Key},
    commit::bucket,
    grid,
    rows::{self, Sum},
};
use crate::accounting::{
    reading::{Coverage, Layer, Traffic},
    subject::SubjectKind,
    usage::{Level, Span},
};

/// What kind of ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How many users; user `n` is `user-n@example.org`.
    pub users: u32,
    /// How many groups; group `n` has the port `n`.
    pub groups: u32,
    /// Over how many days, the last of which ends at `end`.
    pub days: u32,
    /// In how many hours of a day each of them moves something, at most 24.
    pub hours: u32,
    /// Seconds of Unix time, at midnight of UTC.
    pub end: i64,
}

/// A user's traffic in an hour of his day: payload, and what it was on the wire.
fn moved(user: u32, hour: i64) -> (Traffic, Traffic) {
    let mix = u64::from(user)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(hour.unsigned_abs().wrapping_mul(0xbf58_476d_1ce4_e5b9));
    let up = 1_000_000 + (mix >> 40);
    let down = 20_000_000 + (mix >> 36 & 0xfff_ffff);
    let traffic =
        |input_bytes, output_bytes| Traffic { input_bytes, output_bytes, ..Traffic::default() };
    (traffic(up, down), traffic(up + up / 50, down + down / 50))
}

/// Makes the ledger in a folder that has none: days for all of it, hours for the last 60 days and five
/// minutes for the last two, as they would be after that time. Gives the payload that was booked.
///
/// # Errors
///
/// Every [`LedgerError`].
pub fn generate(folder: &Path, sample: Sample) -> Result<Traffic, LedgerError> {
    let (mut ledger, _) = Ledger::open(folder, Options::default())?;
    let first = sample.end - i64::from(sample.days) * DAY;
    ledger.transaction(|db, _, _| {
        let mut statement = db.prepare_cached(
            "INSERT INTO subject (id, kind, key, first, last) VALUES (?1, 'user', ?2, ?3, ?4)",
        )?;
        for user in 1..=sample.users {
            let email = format!("user-{user}@example.org");
            statement.execute((user, email, first, sample.end - HOUR))?;
        }
        let mut statement = db.prepare_cached(
            "INSERT INTO subject (id, kind, key, first, last) VALUES (?1, 'group', ?2, ?3, ?4)",
        )?;
        for group in 1..=sample.groups {
            let key = format!("{group}/tcp");
            statement.execute((sample.users + group, key, first, sample.end - HOUR))?;
        }
        Ok(())
    })?;
    let mut total = Traffic::default();
    for day in 0..i64::from(sample.days) {
        let day = grid(first + day * DAY, DAY);
        total = total.plus(ledger.transaction(|db, known, _| {
            let mut make = |level, span: Span, parent: Option<i64>| {
                let node = bucket(db, &mut known.forest, level, span.begin, span)?;
                if let Some(parent) = parent {
                    db.prepare_cached("UPDATE bucket SET parent = ?2 WHERE id = ?1")?
                        .execute((node.id, parent))?;
                    known.forest.adopt(node.id, parent);
                }
                Ok::<_, rusqlite::Error>(node.id)
            };
            let age = sample.end - day.end;
            let mut sums = Rows::new(sample.users + sample.groups);
            let whole = make(Level::Day, day, None)?;
            let mut blocks = Vec::new();
            for hour in 0..24 {
                let span = Calendar::utc().hour(day.begin + hour * HOUR);
                let active = sums.hour(sample, span);
                if age < 60 * DAY {
                    let id = make(Level::Hour, span, Some(whole))?;
                    if age < 2 * DAY {
                        for part in 0..12 {
                            let begin = span.begin + part * MINUTES;
                            let id = make(Level::Minutes, grid(begin, MINUTES), Some(id))?;
                            blocks.push((id, share_of(&active, part.unsigned_abs())));
                        }
                    }
                    blocks.push((id, active));
                }
            }
            blocks.push((whole, sums.day.clone()));
            blocks.sort_unstable_by_key(|(id, _)| *id);
            for (id, block) in &blocks {
                write(db, *id, block, sample.users)?;
            }
            let of_users = sums.day.iter().filter(|(number, ..)| *number <= sample.users);
            Ok(of_users.map(|(_, payload, _)| *payload).sum())
        })?);
    }
    Ok(total)
}

/// Number of a user, or behind them of a group; payload and wire; in the order of the numbers.
type Block = Vec<(u32, Traffic, Traffic)>;

struct Rows {
    day: Block,
}

impl Rows {
    fn new(subjects: u32) -> Self {
        let none = Traffic::default();
        Self { day: (1..=subjects).map(|number| (number, none, none)).collect() }
    }

    /// What is moved in an hour, which is added to the day.
    fn hour(&mut self, sample: Sample, span: Span) -> Block {
        let hour = span.begin.div_euclid(HOUR);
        let mut block = Vec::new();
        for (user, payload, wire) in &mut self.day {
            // Each user has his own hours.
            if (hour + i64::from(*user)).rem_euclid(24) >= i64::from(sample.hours) {
                continue;
            }
            let (moved, on_wire) = moved(*user, hour);
            *payload = payload.plus(moved);
            *wire = wire.plus(on_wire);
            block.push((*user, moved, on_wire));
        }
        block
    }
}

/// One of the twelve parts of an hour: they add up to it.
fn share_of(block: &Block, part: u64) -> Block {
    let twelfth = |amount: u64| amount / 12 + u64::from(part < amount % 12);
    let share = |traffic: Traffic| Traffic {
        input_bytes: twelfth(traffic.input_bytes),
        output_bytes: twelfth(traffic.output_bytes),
        ..Traffic::default()
    };
    block.iter().map(|(user, payload, wire)| (*user, share(*payload), share(*wire))).collect()
}

fn write(
    db: &rusqlite::Connection,
    bucket: i64,
    block: &Block,
    users: u32,
) -> rusqlite::Result<()> {
    let (users, groups) = block.split_at(block.partition_point(|(number, ..)| *number <= users));
    for (kind, layer, block) in [
        (SubjectKind::Group, Layer::L3, groups),
        (SubjectKind::User, Layer::L3, users),
        (SubjectKind::User, Layer::Payload, users),
    ] {
        let book = Book::new(kind, layer);
        let sums: Vec<_> = block
            .iter()
            .map(|(number, payload, wire)| {
                let traffic = if layer == Layer::Payload { *payload } else { *wire };
                let key = Key::new(bucket, book, i64::from(*number));
                (key, Sum { traffic, coverage: Coverage::Complete })
            })
            .collect();
        rows::add(db, &sums)?;
    }
    Ok(())
}
