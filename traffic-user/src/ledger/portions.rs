//! Buckets one by one, for a reader who may take his time.
//!
//! While a transaction is open nothing that the daemon writes can be written back to the ledger's own
//! pages, and what it writes ahead of them grows. So buckets are read in portions, each in a transaction
//! of its own that is over before anything of it is handed on.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use rusqlite::Connection;

use super::{
    LedgerError,
    codec::{Book, Key},
    forest::Node,
    query::{Reader, number, usage},
    rows::{self, SUM, Sum},
};
use crate::accounting::{
    subject::Subject,
    usage::{Bucket, Level, Span},
};

/// A portion ends with the bucket that makes it this large. So small in unit tests that there are many.
const ROWS: usize = if cfg!(test) { 4 } else { 16_384 };

/// Which buckets are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Of this length. `None`: the shortest that are kept for each time, which add up to the totals.
    pub level: Option<Level>,
    /// Whose; `None` for all.
    pub subjects: Option<&'a [Subject]>,
}

/// What was read at once.
#[derive(Default)]
struct Portion {
    rows: Vec<(Node, Key, Sum)>,
    names: HashMap<i64, (Subject, Option<Arc<str>>)>,
    /// Buckets that are read now, empty ones as well.
    nodes: Vec<Node>,
    /// Nothing comes after it.
    last: bool,
}

impl Reader {
    /// Gives what is booked in each bucket that begins in a span, in the order of time, until told to
    /// break. Says how many it gave.
    ///
    /// Longer buckets are made when they are over: the hour that runs is in no bucket of an hour yet.
    ///
    /// `each` may wait as long as it likes: nothing is held meanwhile. So each bucket is as of one tick,
    /// but two buckets need not be as of the same one: what is booked after the first was read is in
    /// those that come later, and what is made behind the place that was reached is left out. No bucket is given
    /// twice, and nothing is given in one that is in another as well.
    ///
    /// # Errors
    ///
    /// What SQLite says, and [`LedgerError::LetGo`] where the shortest buckets of a time were let go when a part
    /// of them was given.
    pub fn buckets(
        &self,
        span: Span,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(Bucket) -> ControlFlow<()>,
    ) -> Result<u64, LedgerError> {
        // What there was when the portion before was read: what is there since then may have swallowed others.
        let mut known = HashSet::new();
        let mut reached: Option<Node> = None;
        let mut count = 0;
        loop {
            let portion = self.at_once(|reader| {
                let forest = reader.ask(|_| reader.forest())?;
                let nodes: Vec<Node> = match wanted.level {
                    Some(level) => forest.of_level(level).collect(),
                    None => forest.leaves(),
                };
                let torn = |node: &Node| {
                    !known.contains(&node.id) && reached.is_some_and(|last| swallows(node, &last))
                };
                if wanted.level.is_none() && nodes.iter().any(torn) {
                    return Err(LedgerError::LetGo { path: reader.path.clone() });
                }
                known = nodes.iter().map(|node| node.id).collect();
                let rest = nodes.into_iter().filter(|node| {
                    span.contains(node.span.begin)
                        && reached.is_none_or(|last| place(node) > place(&last))
                });
                reader.ask(|db| read(db, rest, wanted.subjects))
            })?;
            reached = portion.nodes.last().copied().or(reached);
            for (node, key, sum) in portion.rows {
                let Some((subject, name)) = portion.names.get(&key.subject()) else { continue };
                count += 1;
                let bucket = Bucket {
                    level: node.level,
                    span: node.span,
                    subject: subject.clone(),
                    name: name.clone(),
                    usage: usage(key.layer(), sum),
                };
                if each(bucket).is_break() {
                    return Ok(count);
                }
            }
            if portion.last {
                return Ok(count);
            }
        }
    }
}

/// Where a bucket comes in the order of time. Of two that begin together the longer one is first: where the
/// clock went back, one that was booked later may stand in it, and was not swallowed.
const fn place(node: &Node) -> (i64, Reverse<Level>) {
    (node.span.begin, Reverse(node.level))
}

/// Whether a bucket holds another one, and time that comes after it.
fn swallows(node: &Node, other: &Node) -> bool {
    node.level > other.level
        && node.span.contains(other.span.begin)
        && node.span.end > other.span.end
}

/// Reads buckets until it is enough.
fn read(
    db: &Connection,
    mut nodes: impl Iterator<Item = Node>,
    subjects: Option<&[Subject]>,
) -> rusqlite::Result<Portion> {
    let mut portion = Portion::default();
    let mut keys = None;
    if let Some(subjects) = subjects {
        let mut wanted = Vec::new();
        for subject in subjects {
            let Some(number) = number(db, subject)? else { continue };
            wanted.extend(Book::of_kind(subject.kind()).map(|(_, book)| Key::new(0, book, number)));
        }
        wanted.sort_unstable();
        keys = Some(wanted);
    }
    while portion.rows.len() < ROWS {
        let Some(node) = nodes.next() else {
            portion.last = true;
            break;
        };
        portion.nodes.push(node);
        match &keys {
            None => {
                let (first, last) = Key::of_bucket(node.id);
                range(db, node, (first, last), &mut portion.rows)?;
            }
            Some(keys) => {
                for key in keys {
                    let key = key.moved_to(node.id).0;
                    range(db, node, (key, key), &mut portion.rows)?;
                }
            }
        }
    }
    if !portion.rows.is_empty() {
        let named = rows::subjects(db)?.into_iter();
        portion.names = named.map(|named| (named.id, (named.subject, named.name))).collect();
    }
    Ok(portion)
}

fn range(
    db: &Connection,
    node: Node,
    keys: (i64, i64),
    to: &mut Vec<(Node, Key, Sum)>,
) -> rusqlite::Result<()> {
    let mut statement =
        db.prepare_cached(&format!("SELECT key, {SUM} FROM usage WHERE key BETWEEN ?1 AND ?2"))?;
    let mut rows = statement.query(keys)?;
    while let Some(row) = rows.next()? {
        to.push((node, Key(row.get(0)?), Sum::read(row, 1)?));
    }
    Ok(())
}
