//! Summing up, letting go and giving back: small steps between the ticks.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use super::{
    codec::Key,
    commit::{Known, Ledger, add_up, bucket},
    error::LedgerError,
    forest::Node,
    rows::{SUM, Sum},
};
use crate::accounting::{
    retention::Keep,
    usage::{Level, Span},
};

/// Pages that are given back to the file system in one step.
const PAGES: u32 = 256;
/// Free pages are kept for what comes, unless they are more than one in this many.
const FREE_PART: i64 = 4;
/// And more than this: 4 MiB.
const FREE_LEAST: i64 = 1024;

/// What one step of tidying did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidied {
    /// Nothing was left to do.
    Nothing,
    /// Buckets of an hour or a day were summed up.
    SummedUp,
    /// A bucket was let go.
    LetGo,
    /// Free pages were given back.
    GaveBack,
}

impl Ledger {
    /// Does one step of what is to be done between ticks, if anything is: none takes longer than
    /// summing up one hour. `now` is seconds of Unix time.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit); nothing of the step is done then.
    pub fn tidy(&mut self, now: i64) -> Result<Tidied, LedgerError> {
        if let Some((level, span)) = self.to_sum_up(now) {
            self.transaction(|db, known, _| sum_up(db, known, level, span))?;
            return Ok(Tidied::SummedUp);
        }
        if let Some(node) = self.to_let_go(now) {
            self.transaction(|db, known, _| let_go(db, known, node))?;
            return Ok(Tidied::LetGo);
        }
        self.give_back()
    }

    /// The first hour or day that has passed and has parts that are not summed up.
    fn to_sum_up(&self, now: i64) -> Option<(Level, Span)> {
        let forest = &self.known.as_ref()?.forest;
        let calendar = &self.options.calendar;
        for (part, whole) in [(Level::Minutes, Level::Hour), (Level::Hour, Level::Day)] {
            for node in forest.of_level(part).filter(|node| node.parent.is_none()) {
                let begin = node.span.begin;
                let span = match (forest.at(whole, begin), whole) {
                    (Some(there), _) => there.span,
                    (None, Level::Day) => forest.free(whole, begin, calendar.day(begin)),
                    (None, _) => forest.free(whole, begin, calendar.hour(begin)),
                };
                if span.end <= now {
                    return Some((whole, span));
                }
            }
        }
        None
    }

    /// The first bucket that is too old. One that is not summed up is kept, and so is the parent of one
    /// that is there.
    fn to_let_go(&self, now: i64) -> Option<Node> {
        let forest = &self.known.as_ref()?.forest;
        let retention = self.options.retention;
        let kept = [
            (Level::Minutes, retention.minutes),
            (Level::Hour, retention.hours),
            (Level::Day, retention.days),
        ];
        kept.into_iter().find_map(|(level, kept)| {
            let Keep::For(kept) = kept else { return None };
            let kept = i64::try_from(kept.as_secs()).unwrap_or(i64::MAX);
            let oldest = now.saturating_sub(kept);
            let old = |node: &Node| {
                node.span.end <= oldest
                    && (node.parent.is_some() || level == Level::Day)
                    && !forest.has_parts(node.id)
            };
            forest.of_level(level).find(old)
        })
    }

    /// Gives pages back that are free for good.
    fn give_back(&mut self) -> Result<Tidied, LedgerError> {
        let failed = |cause| LedgerError::of(&self.path, cause);
        let ask = |pragma| self.db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let (free, all) =
            (ask("freelist_count").map_err(failed)?, ask("page_count").map_err(failed)?);
        if free < FREE_LEAST || free < all / FREE_PART {
            return Ok(Tidied::Nothing);
        }
        self.db.execute_batch(&format!("PRAGMA incremental_vacuum({PAGES})")).map_err(failed)?;
        Ok(Tidied::GaveBack)
    }
}

/// Adds what is not summed up yet, of the parts of an hour or a day, to it.
fn sum_up(db: &Connection, known: &mut Known, level: Level, span: Span) -> rusqlite::Result<()> {
    let part = if level == Level::Day { Level::Hour } else { Level::Minutes };
    let parts: Vec<Node> = known
        .forest
        .of_level(part)
        .filter(|node| node.parent.is_none() && span.contains(node.span.begin))
        .collect();
    let whole = bucket(db, &mut known.forest, level, span.begin, span)?;
    let mut sums: HashMap<Key, Sum> = HashMap::new();
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for node in &parts {
        let (first, end) = Key::of_bucket(node.id);
        let mut statement = db
            .prepare_cached(&format!("SELECT key, {SUM} FROM usage WHERE key BETWEEN ?1 AND ?2"))?;
        let mut rows = statement.query((first, end))?;
        while let Some(row) = rows.next()? {
            let key = Key(row.get(0)?);
            sums.entry(key.moved_to(whole.id)).or_default().add(Sum::read(row, 1)?);
            if part == Level::Minutes {
                last.insert(key.subject(), node.span.begin);
            }
        }
        db.prepare_cached("UPDATE bucket SET parent = ?2 WHERE id = ?1")?
            .execute((node.id, whole.id))?;
        known.forest.adopt(node.id, whole.id);
    }
    add_up(db, &known.forest, whole, sums.into_iter().collect())?;
    let mut statement =
        db.prepare_cached("UPDATE subject SET last = max(last, ?2) WHERE id = ?1")?;
    for (subject, begin) in last {
        statement.execute((subject, begin))?;
    }
    Ok(())
}

fn let_go(db: &Connection, known: &mut Known, node: Node) -> rusqlite::Result<()> {
    let (first, last) = Key::of_bucket(node.id);
    db.prepare_cached("DELETE FROM usage WHERE key BETWEEN ?1 AND ?2")?.execute((first, last))?;
    if let Some(parent) = node.parent {
        db.prepare_cached("UPDATE bucket SET trimmed = 1 WHERE id = ?1")?.execute([parent])?;
    }
    db.prepare_cached("DELETE FROM bucket WHERE id = ?1")?.execute([node.id])?;
    known.forest.remove(node.id);
    Ok(())
}
