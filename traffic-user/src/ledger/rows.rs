//! Rows that both the writer and the readers know.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, Row};

use super::{
    codec::{self, Key, coverage, coverage_number, stored},
    forest::{Forest, Node},
};
use crate::accounting::{
    proxy::CounterName,
    reading::{Coverage, Traffic},
    subject::Subject,
    usage::Span,
};

/// What is under one key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub(super) traffic: Traffic,
    pub(super) coverage: Coverage,
}

impl Sum {
    pub(super) fn add(&mut self, other: Self) {
        self.traffic = self.traffic.plus(other.traffic);
        self.coverage = self.coverage.max(other.coverage);
    }

    /// Columns from `input_bytes` on, of which the first is number `at`.
    pub(super) fn read(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        let amount = |at| row.get::<_, i64>(at).map(i64::unsigned_abs);
        Ok(Self {
            traffic: Traffic {
                input_bytes: amount(at)?,
                output_bytes: amount(at + 1)?,
                input_packets: amount(at + 2)?,
                output_packets: amount(at + 3)?,
            },
            coverage: coverage(row.get(at + 4)?),
        })
    }
}

/// The columns of [`Sum::read`].
pub(super) const SUM: &str = "input_bytes, output_bytes, input_packets, output_packets, coverage";

// A sum that is full takes no more: 63 bits are what SQLite can count to.
const ADD: &str = "
    INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (key) DO UPDATE SET
        input_bytes = input_bytes + min(excluded.input_bytes, 0x7fffffffffffffff - input_bytes),
        output_bytes = output_bytes + min(excluded.output_bytes, 0x7fffffffffffffff - output_bytes),
        input_packets =
            input_packets + min(excluded.input_packets, 0x7fffffffffffffff - input_packets),
        output_packets =
            output_packets + min(excluded.output_packets, 0x7fffffffffffffff - output_packets),
        coverage = max(coverage, excluded.coverage)";

/// Adds to what is under these keys. In their order it is fastest.
pub(super) fn add(db: &Connection, sums: &[(Key, Sum)]) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(ADD)?;
    for (key, Sum { traffic, coverage }) in sums {
        statement.execute((
            key.0,
            stored(traffic.input_bytes),
            stored(traffic.output_bytes),
            stored(traffic.input_packets),
            stored(traffic.output_packets),
            coverage_number(*coverage),
        ))?;
    }
    Ok(())
}

/// All buckets.
pub(super) fn forest(db: &Connection) -> rusqlite::Result<Forest> {
    let mut statement =
        db.prepare_cached("SELECT id, level, \"begin\", \"end\", parent, trimmed FROM bucket")?;
    let mut rows = statement.query([])?;
    let mut forest = Forest::default();
    while let Some(row) = rows.next()? {
        let Some(level) = codec::level(row.get(1)?) else { continue };
        forest.insert(Node {
            id: row.get(0)?,
            level,
            span: Span { begin: row.get(2)?, end: row.get(3)? },
            parent: row.get(4)?,
            trimmed: row.get(5)?,
        });
    }
    Ok(forest)
}

/// A subject with its number and name.
pub(super) struct Named {
    pub(super) id: i64,
    pub(super) subject: Subject,
    pub(super) name: Option<Arc<str>>,
}

/// All subjects, in the order of their numbers.
pub(super) fn subjects(db: &Connection) -> rusqlite::Result<Vec<Named>> {
    let mut statement = db.prepare_cached("SELECT id, kind, key, name FROM subject ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut subjects = Vec::new();
    while let Some(row) = rows.next()? {
        subjects.extend(named(row)?);
    }
    Ok(subjects)
}

/// A row of id, kind, key and name; `None` for a kind that is not known.
pub(super) fn named(row: &Row<'_>) -> rusqlite::Result<Option<Named>> {
    let subject = codec::kind(row.get_ref(1)?.as_str()?)
        .and_then(|kind| Some(Subject::from_key(kind, row.get_ref(2).ok()?.as_str().ok()?)));
    let Some(Some(subject)) = subject else { return Ok(None) };
    Ok(Some(Named { id: row.get(0)?, subject, name: row.get(3)? }))
}

/// Names of the proxy's counters.
pub(super) fn counters(db: &Connection) -> rusqlite::Result<HashMap<u32, CounterName>> {
    let mut statement = db.prepare_cached("SELECT id, name FROM counter")?;
    let mut rows = statement.query([])?;
    let mut counters = HashMap::new();
    while let Some(row) = rows.next()? {
        if let Some(name) = CounterName::parse(row.get_ref(1)?.as_str()?) {
            counters.insert(row.get(0)?, name);
        }
    }
    Ok(counters)
}
