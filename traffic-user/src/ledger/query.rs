//! The readers' questions.

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    codec::{Book, Key},
    commit::cursors,
    error::LedgerError,
    file,
    forest::{Forest, Part},
    rows::{self, SUM, Sum},
    schema,
};
use crate::accounting::{
    reading::{Coverage, Layer, Traffic},
    subject::{Subject, SubjectKind},
    tick::Cursors,
    usage::{Booked, By, Event, Known, Level, Ranked, Ranking, Span, Usage},
};

/// The ledger, opened for reading. Works while a daemon writes, and without root for those whom the
/// state folder lets in. Each question is answered as of one tick; several are, as of the same one,
/// inside [`at_once`](Self::at_once).
///
/// Sums are exact to five minutes for as long as buckets of five minutes are kept, then to the hour, then
/// to the day: where the end of a span cuts a bucket, all of that belongs to the span that holds its
/// begin, and the sum's coverage is `Estimated` at best.
#[derive(Debug)]
pub struct Reader {
    pub(super) path: PathBuf,
    pub(super) db: Connection,
    /// The buckets as of the tick that several questions are answered as of.
    forest: RefCell<Option<Arc<Forest>>>,
}

impl Reader {
    /// Opens the ledger in a state folder; `None` when there is none yet.
    ///
    /// # Errors
    ///
    /// [`LedgerError`], of which [`LedgerError::TooOld`] is the reader's alone.
    pub fn open(folder: &Path) -> Result<Option<Self>, LedgerError> {
        let path = file::path(folder);
        let Some(db) = file::open_to_read(&path)? else { return Ok(None) };
        let found = schema::version(&db, &path)?;
        if found == 0 {
            // It was only just made.
            return Ok(None);
        }
        if usize::try_from(found).unwrap_or(0) < schema::STEPS.len() {
            return Err(LedgerError::TooOld { path, found });
        }
        Ok(Some(Self { path, db, forest: RefCell::default() }))
    }

    /// Asks several questions, which are all answered as of one tick: numbers of one report have to
    /// belong together. The buckets are looked through once for all of them.
    ///
    /// Nothing that waits for others belongs in here: meanwhile what the daemon writes cannot be
    /// written back.
    ///
    /// # Errors
    ///
    /// Those of the questions, and what SQLite says.
    pub fn at_once<T, E: From<LedgerError>>(
        &self,
        questions: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.db.is_autocommit() {
            return questions(self);
        }
        let failed = |cause| LedgerError::of(&self.path, cause);
        self.forest.take();
        // Ends when it is dropped; nothing was written that could be committed.
        let _tx = self.db.unchecked_transaction().map_err(failed)?;
        let answers = questions(self);
        self.forest.take();
        answers
    }

    /// From the first booking to the end of the last; `None` when nothing was booked yet.
    ///
    /// # Errors
    ///
    /// What SQLite says, here and in all that follows.
    pub fn extent(&self) -> Result<Option<Span>, LedgerError> {
        self.ask(|_| Ok(self.forest()?.extent()))
    }

    /// Readings up to which everything is booked.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn cursors(&self) -> Result<Cursors, LedgerError> {
        self.ask(cursors)
    }

    /// Subjects of which there are records, in the order of their keys; of all kinds for `None`.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn subjects(&self, kind: Option<SubjectKind>) -> Result<Vec<Known>, LedgerError> {
        self.ask(|db| {
            let forest = self.forest()?;
            let mut recent: HashMap<i64, i64> = HashMap::new();
            for node in forest.of_level(Level::Minutes).filter(|node| node.parent.is_none()) {
                let (first, last) = Key::of_bucket(node.id);
                let mut statement =
                    db.prepare_cached("SELECT key FROM usage WHERE key BETWEEN ?1 AND ?2")?;
                let mut rows = statement.query((first, last))?;
                while let Some(row) = rows.next()? {
                    recent.insert(Key(row.get(0)?).subject(), node.span.begin);
                }
            }
            let mut statement = db.prepare_cached(
                "SELECT id, kind, key, name, first, last FROM subject
                 WHERE ?1 IS NULL OR kind = ?1 ORDER BY kind, key",
            )?;
            let mut rows = statement.query([kind.map(SubjectKind::name)])?;
            let mut known = Vec::new();
            while let Some(row) = rows.next()? {
                let Some(named) = rows::named(row)? else { continue };
                let last: i64 = row.get(5)?;
                known.push(Known {
                    subject: named.subject,
                    name: named.name,
                    first: row.get(4)?,
                    last: recent.get(&named.id).copied().unwrap_or(last).max(last),
                });
            }
            Ok(known)
        })
    }

    /// Whether there are records of a subject.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn knows(&self, subject: &Subject) -> Result<bool, LedgerError> {
        self.ask(|db| Ok(number(db, subject)?.is_some()))
    }

    /// What a subject was booked in each of these spans, which are in order and apart from one another:
    /// for each span one sum a layer, none for a layer without traffic. All empty for one who is not
    /// known.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn history(
        &self,
        subject: &Subject,
        spans: &[Span],
    ) -> Result<Vec<Vec<Usage>>, LedgerError> {
        self.ask(|db| {
            let mut history = vec![Vec::new(); spans.len()];
            let Some(number) = number(db, subject)? else { return Ok(history) };
            let cover = self.forest()?.cover(spans);
            let mut statement =
                db.prepare_cached(&format!("SELECT {SUM} FROM usage WHERE key = ?1"))?;
            for (layer, book) in Book::of_kind(subject.kind()) {
                let mut sums: Vec<Option<Sum>> = vec![None; spans.len()];
                for part in &cover {
                    let key = Key::new(part.id, book, number);
                    let found = statement.query_row([key.0], |row| Sum::read(row, 0)).optional()?;
                    if let Some(found) = found {
                        sums[part.span].get_or_insert_default().add(of_part(found, part));
                    }
                }
                for (usages, sum) in history.iter_mut().zip(sums) {
                    usages.extend(sum.map(|sum| usage(layer, sum)));
                }
            }
            Ok(history)
        })
    }

    /// What every subject of a kind was booked in each of these spans, which may overlap: for each span
    /// one sum a layer, in the order of the keys. Those of whom there are records are all there.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn booked(&self, kind: SubjectKind, spans: &[Span]) -> Result<Vec<Booked>, LedgerError> {
        self.ask(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, kind, key, name FROM subject WHERE kind = ?1 ORDER BY key",
            )?;
            let mut rows = statement.query([kind.name()])?;
            let mut all = Vec::new();
            let mut places = HashMap::new();
            while let Some(row) = rows.next()? {
                let Some(named) = rows::named(row)? else { continue };
                places.insert(named.id, all.len());
                let usages = vec![Vec::new(); spans.len()];
                all.push(Booked { subject: named.subject, name: named.name, usages });
            }
            let forest = self.forest()?;
            for (n, span) in spans.iter().enumerate() {
                let cover = forest.cover(&[*span]);
                for (layer, book) in Book::of_kind(kind) {
                    for (number, sum) in (0_i64..).zip(sums(db, &cover, book)?) {
                        let usages = places.get(&number).and_then(|at| all.get_mut(*at));
                        if let (Some(sum), Some(booked)) = (sum, usages) {
                            booked.usages[n].push(usage(layer, sum));
                        }
                    }
                }
            }
            Ok(all)
        })
    }

    /// What a subject was booked since ever.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn totals(&self, subject: &Subject) -> Result<Vec<Usage>, LedgerError> {
        Ok(self.history(subject, &[Span::ALL])?.pop().unwrap_or_default())
    }

    /// Layers in which subjects of a kind are booked in a span, in their order.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn layers(&self, kind: SubjectKind, span: Span) -> Result<Vec<Layer>, LedgerError> {
        self.ask(|db| {
            let cover = self.forest()?.cover(&[span]);
            let mut statement =
                db.prepare_cached("SELECT 1 FROM usage WHERE key BETWEEN ?1 AND ?2 LIMIT 1")?;
            let mut layers = Vec::new();
            for (layer, book) in Book::of_kind(kind) {
                for part in &cover {
                    if statement.exists(Key::of_book(part.id, book))? {
                        layers.push(layer);
                        break;
                    }
                }
            }
            Ok(layers)
        })
    }

    /// The `most` largest subjects of a kind in a span, and what all of them are together.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn top(
        &self,
        kind: SubjectKind,
        layer: Layer,
        span: Span,
        by: By,
        most: usize,
    ) -> Result<Ranking, LedgerError> {
        self.ask(|db| {
            let cover = self.forest()?.cover(&[span]);
            let sums = sums(db, &cover, Book::new(kind, layer))?;
            rank(db, layer, by, most, sums)
        })
    }

    /// What happened in a span, the oldest first: the last `most` of it.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn events(&self, span: Span, most: usize) -> Result<Vec<Event>, LedgerError> {
        let nanos = |second: i64| second.saturating_mul(1_000_000_000);
        self.ask(|db| {
            let mut statement = db.prepare_cached(
                "SELECT subject.id, subject.kind, subject.key, subject.name,
                        event.at, event.kind, event.what
                 FROM event LEFT JOIN subject ON subject.id = event.subject
                 WHERE at >= ?1 AND at < ?2 ORDER BY at DESC, event.id DESC LIMIT ?3",
            )?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            let mut rows = statement.query((nanos(span.begin), nanos(span.end), most))?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                let named = match row.get::<_, Option<i64>>(0)? {
                    Some(_) => rows::named(row)?,
                    None => None,
                };
                events.push(Event {
                    at: i128::from(row.get::<_, i64>(4)?),
                    kind: row.get(5)?,
                    subject: named.map(|named| named.subject),
                    what: row.get(6)?,
                });
            }
            events.reverse();
            Ok(events)
        })
    }

    /// The last event of a kind that concerns a subject, or for `None` all of them.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn last_event(
        &self,
        kind: &str,
        subject: Option<&Subject>,
    ) -> Result<Option<Event>, LedgerError> {
        self.ask(|db| {
            let wanted = match subject {
                Some(subject) => match number(db, subject)? {
                    Some(number) => Some(number),
                    None => return Ok(None),
                },
                None => None,
            };
            db.prepare_cached(
                "SELECT at, kind, what FROM event WHERE kind = ?1 AND subject IS ?2
                 ORDER BY at DESC, id DESC LIMIT 1",
            )?
            .query_row((kind, wanted), |row| {
                Ok(Event {
                    at: i128::from(row.get::<_, i64>(0)?),
                    kind: row.get(1)?,
                    subject: subject.cloned(),
                    what: row.get(2)?,
                })
            })
            .optional()
        })
    }

    /// Answers as of one time, whatever is written meanwhile.
    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        self.at_once(|reader| {
            question(&reader.db).map_err(|cause| LedgerError::of(&reader.path, cause))
        })
    }

    /// The buckets as of the tick of the question.
    pub(super) fn forest(&self) -> rusqlite::Result<Arc<Forest>> {
        if let Some(forest) = &*self.forest.borrow() {
            return Ok(forest.clone());
        }
        let forest = Arc::new(rows::forest(&self.db)?);
        self.forest.replace(Some(forest.clone()));
        Ok(forest)
    }
}

pub(super) fn number(db: &Connection, subject: &Subject) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM subject WHERE kind = ?1 AND key = ?2")?
        .query_row((subject.kind().name(), subject.key()), |row| row.get(0))
        .optional()
}

pub(super) const fn usage(layer: Layer, sum: Sum) -> Usage {
    Usage { layer, traffic: sum.traffic, coverage: sum.coverage }
}

/// What is in a book in these buckets, by the number of the subject: numbers are small, so that a list of all
/// of them is faster than any map.
fn sums(db: &Connection, cover: &[Part], book: Book) -> rusqlite::Result<Vec<Option<Sum>>> {
    let mut sums: Vec<Option<Sum>> = Vec::new();
    let mut statement =
        db.prepare_cached(&format!("SELECT key, {SUM} FROM usage WHERE key BETWEEN ?1 AND ?2"))?;
    for part in cover {
        let mut rows = statement.query(Key::of_book(part.id, book))?;
        while let Some(row) = rows.next()? {
            let number = usize::try_from(Key(row.get(0)?).subject()).unwrap_or(0);
            if number >= sums.len() {
                sums.resize(number + 1, None);
            }
            let sum = of_part(Sum::read(row, 1)?, part);
            sums[number].get_or_insert_default().add(sum);
        }
    }
    Ok(sums)
}

/// What lies in a bucket that is cut is known, but not on which side of the cut.
fn of_part(sum: Sum, part: &Part) -> Sum {
    let least = if part.whole { Coverage::Complete } else { Coverage::Estimated };
    Sum { coverage: sum.coverage.max(least), ..sum }
}

fn rank(
    db: &Connection,
    layer: Layer,
    by: By,
    most: usize,
    sums: Vec<Option<Sum>>,
) -> rusqlite::Result<Ranking> {
    let mut total: Option<Sum> = None;
    for sum in sums.iter().flatten() {
        total.get_or_insert_default().add(*sum);
    }
    // Of whom is only known that something was lost, he has no place.
    let moved = |sum: &Sum| sum.traffic != Traffic::default();
    let mut order: Vec<(u64, i64, Sum)> = (0..)
        .zip(sums)
        .filter_map(|(number, sum)| Some((number, sum.filter(moved)?)))
        .map(|(number, sum)| (by.of(sum.traffic), number, sum))
        .collect();
    let subjects = order.len();
    order.sort_unstable_by_key(|(bytes, number, _)| (std::cmp::Reverse(*bytes), *number));
    // Those that are as large as the last one may belong before it by their keys.
    let enough = match most.checked_sub(1).and_then(|last| order.get(last)) {
        Some((least, ..)) => order.partition_point(|(bytes, ..)| bytes >= least),
        None => order.len().min(most),
    };
    order.truncate(enough);
    let mut statement =
        db.prepare_cached("SELECT id, kind, key, name FROM subject WHERE id = ?1")?;
    let mut places = Vec::with_capacity(order.len());
    for (_, number, sum) in order {
        let mut rows = statement.query([number])?;
        let Some(row) = rows.next()? else { continue };
        if let Some(named) = rows::named(row)? {
            places.push(Ranked {
                subject: named.subject,
                name: named.name,
                usage: usage(layer, sum),
            });
        }
    }
    places.sort_by(|a, b| {
        let largest = by.of(b.usage.traffic).cmp(&by.of(a.usage.traffic));
        largest.then_with(|| a.subject.cmp(&b.subject))
    });
    places.truncate(most);
    Ok(Ranking { places, subjects, total: total.map(|sum| usage(layer, sum)) })
}
