//! The writer: a plan is one transaction.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use super::{
    MINUTES, Options,
    codec::{self, Book, Key, level_number},
    error::LedgerError,
    file::{self, Identity},
    forest::{Forest, Node},
    grid,
    rows::{self, Sum},
    schema,
};
use crate::{
    accounting::{
        proxy::CounterName,
        subject::{Subject, SubjectKind},
        tick::{Cursors, Plan},
        usage::{Entry, Event, Level, Span},
    },
    fault,
};

/// The ledger, opened for writing.
#[derive(Debug)]
pub struct Ledger {
    pub(super) path: PathBuf,
    pub(super) db: Connection,
    pub(super) options: Options,
    identity: Identity,
    /// What the file holds beside numbers; `None` when that is not sure.
    pub(super) known: Option<Known>,
}

/// What the file holds beside numbers.
#[derive(Debug, Default)]
pub(super) struct Known {
    subjects: HashMap<Subject, (i64, Option<Arc<str>>)>,
    counters: HashMap<CounterName, u32>,
    pub(super) forest: Forest,
}

impl Known {
    fn load(db: &Connection) -> rusqlite::Result<Self> {
        let subjects = rows::subjects(db)?
            .into_iter()
            .map(|named| (named.subject, (named.id, named.name)))
            .collect();
        let counters = rows::counters(db)?.into_iter().map(|(id, name)| (name, id)).collect();
        Ok(Self { subjects, counters, forest: rows::forest(db)? })
    }
}

impl Ledger {
    /// Opens the ledger of a state folder for writing, made or brought up to date if need be. The
    /// caller holds the folder's lock. Says whether it was made.
    ///
    /// # Errors
    ///
    /// Every [`LedgerError`].
    pub fn open(folder: &Path, options: Options) -> Result<(Self, bool), LedgerError> {
        let path = file::path(folder);
        let (mut db, made) = file::open(&path)?;
        schema::migrate(&mut db, &path)?;
        let identity = Identity::of(&path)?;
        let known = Known::load(&db).map_err(|cause| LedgerError::of(&path, cause))?;
        Ok((Self { path, db, options, identity, known: Some(known) }, made))
    }

    /// Keeps it in another way from now on. Days that were summed up stay what they are.
    pub fn keep(&mut self, options: Options) {
        self.options = options;
    }

    /// Readings up to which everything is booked. One that cannot be understood is left out, as if
    /// its meter had never been read.
    ///
    /// # Errors
    ///
    /// What SQLite says.
    pub fn cursors(&self) -> Result<Cursors, LedgerError> {
        cursors(&self.db).map_err(|cause| LedgerError::of(&self.path, cause))
    }

    /// Books a plan, all of it or nothing.
    ///
    /// # Errors
    ///
    /// Every [`LedgerError`] but those of a schema. The plan is not booked then.
    pub fn commit(&mut self, plan: &Plan) -> Result<(), LedgerError> {
        self.is_in_place()?;
        self.transaction(|db, known, _| {
            book(db, known, plan)?;
            write_cursors(db, known, &plan.cursors)?;
            for event in &plan.events {
                write_event(db, known, event, plan.at)?;
            }
            fault::die_at("ledger-commit");
            Ok(())
        })?;
        fault::die_at("ledger-committed");
        Ok(())
    }

    /// Writes back what was written ahead, so that its room can be used again. Says whether there was
    /// anything that could be; readers may stand in its way.
    pub(super) fn write_back(&self) -> rusqlite::Result<bool> {
        self.db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            let (stopped, written): (bool, i64) = (row.get(0)?, row.get(2)?);
            Ok(!stopped && written > 0)
        })
    }

    /// Whether what is open is still what others find under its name. Without this a file that was
    /// removed would take everything that is booked along.
    fn is_in_place(&self) -> Result<(), LedgerError> {
        if Identity::of(&self.path)? == self.identity {
            Ok(())
        } else {
            Err(LedgerError::Replaced { path: self.path.clone() })
        }
    }

    /// Does something as one transaction. What it took note of is forgotten when it fails.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Connection, &mut Known, &Options) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let Self { db, known, options, .. } = self;
        let done = (|| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut now = match known.take() {
                Some(known) => known,
                None => Known::load(&tx)?,
            };
            let done = work(&tx, &mut now, options)?;
            tx.commit()?;
            *known = Some(now);
            Ok(done)
        })();
        done.map_err(|cause| LedgerError::of(&self.path, cause))
    }
}

/// Adds the entries to the bucket of the plan's time, and to those that this one is a part of already.
fn book(db: &Connection, known: &mut Known, plan: &Plan) -> rusqlite::Result<()> {
    if plan.entries.is_empty() {
        return Ok(());
    }
    let node = bucket(db, &mut known.forest, Level::Minutes, plan.at, grid(plan.at, MINUTES))?;
    let mut sums = Vec::with_capacity(plan.entries.len());
    for Entry { subject, name, usage } in &plan.entries {
        let number = subject_number(db, known, subject, plan.at)?;
        if subject.kind() == SubjectKind::Group {
            rename(db, known, subject, name.as_ref())?;
        }
        let key = Key::new(node.id, Book::new(subject.kind(), usage.layer), number);
        sums.push((key, Sum { traffic: usage.traffic, coverage: usage.coverage }));
    }
    add_up(db, &known.forest, node, sums)
}

/// Adds to a bucket and to all that hold what it does.
pub(super) fn add_up(
    db: &Connection,
    forest: &Forest,
    node: Node,
    mut sums: Vec<(Key, Sum)>,
) -> rusqlite::Result<()> {
    sums.sort_unstable_by_key(|(key, _)| *key);
    let mut holder = Some(node);
    while let Some(node) = holder {
        for (key, _) in &mut sums {
            *key = key.moved_to(node.id);
        }
        rows::add(db, &sums)?;
        holder = node.parent.and_then(|parent| forest.get(parent));
    }
    Ok(())
}

/// The bucket of a level that holds a second, made as long as `span` if there is none.
pub(super) fn bucket(
    db: &Connection,
    forest: &mut Forest,
    level: Level,
    second: i64,
    span: Span,
) -> rusqlite::Result<Node> {
    if let Some(node) = forest.at(level, second) {
        return Ok(node);
    }
    let span = forest.free(level, second, span);
    db.prepare_cached("INSERT INTO bucket (level, \"begin\", \"end\") VALUES (?1, ?2, ?3)")?
        .execute((level_number(level), span.begin, span.end))?;
    let node = Node { id: db.last_insert_rowid(), level, span, parent: None, trimmed: false };
    forest.insert(node);
    Ok(node)
}

fn subject_number(
    db: &Connection,
    known: &mut Known,
    subject: &Subject,
    at: i64,
) -> rusqlite::Result<i64> {
    if let Some((number, _)) = known.subjects.get(subject) {
        return Ok(*number);
    }
    db.prepare_cached("INSERT INTO subject (kind, key, first, last) VALUES (?1, ?2, ?3, ?3)")?
        .execute((subject.kind().name(), subject.key(), at))?;
    let number = db.last_insert_rowid();
    known.subjects.insert(subject.clone(), (number, None));
    Ok(number)
}

fn rename(
    db: &Connection,
    known: &mut Known,
    subject: &Subject,
    name: Option<&Arc<str>>,
) -> rusqlite::Result<()> {
    if let Some((number, known)) = known.subjects.get_mut(subject)
        && known.as_ref() != name
    {
        db.prepare_cached("UPDATE subject SET name = ?2 WHERE id = ?1")?
            .execute((*number, name.map(AsRef::as_ref)))?;
        *known = name.cloned();
    }
    Ok(())
}

fn write_event(db: &Connection, known: &mut Known, event: &Event, at: i64) -> rusqlite::Result<()> {
    let subject = match &event.subject {
        Some(subject) => Some(subject_number(db, known, subject, at)?),
        None => None,
    };
    let nanos = i64::try_from(event.at).unwrap_or(i64::MAX);
    db.prepare_cached("INSERT INTO event (at, kind, subject, what) VALUES (?1, ?2, ?3, ?4)")?
        .execute((nanos, &event.kind, subject, &event.what))?;
    Ok(())
}

const ACTIVE: &str = "active";
const PROXY: &str = "proxy";
const DEVICES: &str = "devices";
const ZEROS: &str = "zeros";
const LEFT: &str = "left";

fn write_cursors(db: &Connection, known: &mut Known, cursors: &Cursors) -> rusqlite::Result<()> {
    let unwritable = |error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let write = |name: &str, value: &[u8]| {
        db.prepare_cached("INSERT OR REPLACE INTO cursor VALUES (?1, ?2)")?.execute((name, value))
    };
    for snapshot in &cursors.kernel {
        write(snapshot.meter, &codec::write_snapshot(snapshot).map_err(unwritable)?)?;
    }
    write(ACTIVE, cursors.active.join(" ").as_bytes())?;
    // Those of another time would be taken for these.
    let remove =
        |name: &str| db.prepare_cached("DELETE FROM cursor WHERE name = ?1")?.execute([name]);
    match &cursors.devices {
        Some(devices) => write(DEVICES, &codec::write_devices(devices).map_err(unwritable)?)?,
        None => remove(DEVICES)?,
    };
    match &cursors.zeros {
        zeros if zeros.0.is_empty() => remove(ZEROS)?,
        zeros => write(ZEROS, &codec::write_zeros(zeros).map_err(unwritable)?)?,
    };
    match &cursors.left {
        Some(left) => write(LEFT, &codec::write_left(left).map_err(unwritable)?)?,
        None => remove(LEFT)?,
    };
    let Some(proxy) = &cursors.proxy else { return Ok(()) };
    for counter in &proxy.kept.counters {
        if !known.counters.contains_key(&counter.name) {
            db.prepare_cached("INSERT INTO counter (name) VALUES (?1)")?
                .execute([counter.name.to_string()])?;
            let number = u32::try_from(db.last_insert_rowid()).unwrap_or(u32::MAX);
            known.counters.insert(counter.name.clone(), number);
        }
    }
    let number = |name: &CounterName| known.counters.get(name).copied();
    write(PROXY, &codec::write_proxy(proxy, number).map_err(unwritable)?)?;
    Ok(())
}

/// Readings up to which everything is booked.
pub(super) fn cursors(db: &Connection) -> rusqlite::Result<Cursors> {
    let read = |name: &str| -> rusqlite::Result<Option<Vec<u8>>> {
        db.prepare_cached("SELECT value FROM cursor WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    };
    let names: Vec<String> = db
        .prepare_cached("SELECT name FROM cursor ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut kernel = Vec::new();
    for meter in names.iter().filter_map(|name| codec::meter(name)) {
        kernel.extend(read(meter)?.and_then(|value| codec::read_snapshot(meter, &value)));
    }
    let active = read(ACTIVE)?.and_then(|value| String::from_utf8(value).ok()).unwrap_or_default();
    let proxy = match read(PROXY)? {
        Some(value) => codec::read_proxy(&value, &rows::counters(db)?),
        None => None,
    };
    let devices = read(DEVICES)?.and_then(|value| codec::read_devices(&value));
    let zeros = read(ZEROS)?.map(|value| codec::read_zeros(&value)).unwrap_or_default();
    let active = active.split(' ').filter_map(codec::meter).collect();
    let left = read(LEFT)?.and_then(|value| codec::read_left(&value));
    Ok(Cursors { kernel, active, proxy, devices, zeros, left })
}
