//! The schema and how an older one becomes it.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::LedgerError;

/// In order, never edited after a release: a fix is a new step.
pub(super) const STEPS: &[&str] = &[
    include_str!("../../migrations/0001_init.sql"),
    include_str!("../../migrations/0002_readable.sql"),
];

/// Marks a database as ours: `trfc`.
pub(super) const APPLICATION: i32 = 0x7472_6663;

/// Where a database stands.
pub(super) fn version(db: &Connection, path: &Path) -> Result<u32, LedgerError> {
    let ask = |pragma| db.pragma_query_value(None, pragma, |row| row.get(0));
    let failed = |cause| LedgerError::of(path, cause);
    let version: u32 = ask("user_version").map_err(failed)?;
    let application: u32 = ask("application_id").map_err(failed)?;
    let tables: u32 =
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let known = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
    if application != APPLICATION.unsigned_abs() && (tables > 0 || version > 0) {
        return Err(LedgerError::Foreign { path: path.into() });
    }
    if version > known {
        return Err(LedgerError::TooNew { path: path.into(), found: version, known });
    }
    Ok(version)
}

/// Whether nothing was ever booked in a database, whichever steps it has been through.
pub(super) fn is_empty(db: &Connection) -> rusqlite::Result<bool> {
    let ask = |sql| db.query_row(sql, [], |row| row.get::<_, bool>(0));
    if ask("SELECT count(*) = 0 FROM sqlite_schema")? {
        return Ok(true);
    }
    let ours = ask("SELECT count(*) = 1 FROM sqlite_schema WHERE name = 'cursor'")?;
    Ok(ours && ask("SELECT count(*) = 0 FROM cursor")?)
}

/// Whether a database of ours needs no step any more.
pub(super) fn is_newest(db: &Connection) -> rusqlite::Result<bool> {
    let ask = |pragma| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let newest = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    Ok(ask("application_id")? == i64::from(APPLICATION) && ask("user_version")? == newest)
}

/// Brings a database to the newest schema. Each step and its number land together or not at all, so a
/// crash in between leaves one that the next start carries on with.
pub(super) fn migrate(db: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let found = version(db, path)?;
    for (number, sql) in (1u32..).zip(STEPS).skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        apply(db, number, sql).map_err(|cause| LedgerError::of(path, cause))?;
    }
    Ok(())
}

fn apply(db: &mut Connection, number: u32, sql: &str) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(sql)?;
    tx.pragma_update(None, "application_id", APPLICATION)?;
    tx.pragma_update(None, "user_version", number)?;
    tx.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(db: &Connection) -> Vec<String> {
        let mut rows =
            db.prepare("SELECT sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY 1").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn every_older_ledger_reaches_the_same_schema() {
        let path = Path::new("ledger.db");
        let mut newest = Connection::open_in_memory().unwrap();
        migrate(&mut newest, path).unwrap();
        assert_eq!(version(&newest, path).unwrap(), 2);
        for start in 0..=STEPS.len() {
            let mut db = Connection::open_in_memory().unwrap();
            for (number, sql) in (1..).zip(&STEPS[..start]) {
                apply(&mut db, number, sql).unwrap();
            }
            migrate(&mut db, path).unwrap();
            assert_eq!(schema(&db), schema(&newest), "from {start}");
        }
    }

    #[test]
    fn what_an_older_ledger_holds_is_still_there() {
        let mut db = Connection::open_in_memory().unwrap();
        apply(&mut db, 1, STEPS[0]).unwrap();
        db.execute_batch(
            "INSERT INTO subject VALUES (7, 'user', 'a@x', NULL, 300, 300);
             INSERT INTO bucket VALUES (5, 0, 300, 600, NULL, 0);
             INSERT INTO usage VALUES ((5 << 29) | (19 << 24) | 7, 10, 20, 0, 0, 2);",
        )
        .unwrap();
        migrate(&mut db, Path::new("ledger.db")).unwrap();
        let row = db
            .query_row("SELECT * FROM booked", [], |row| {
                Ok((
                    row.get::<_, String>("begin_utc")?,
                    row.get::<_, String>("layer")?,
                    row.get::<_, i64>("output_bytes")?,
                    row.get::<_, String>("coverage")?,
                ))
            })
            .unwrap();
        assert_eq!(row, ("1970-01-01 00:05:00".into(), "payload".into(), 20, "gap".into()));
    }

    #[test]
    fn a_newer_ledger_and_a_foreign_database_are_refused() {
        let path = Path::new("ledger.db");
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, path).unwrap();
        db.pragma_update(None, "user_version", 3).unwrap();
        assert!(matches!(
            migrate(&mut db, path),
            Err(LedgerError::TooNew { found: 3, known: 2, .. })
        ));

        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE addressbook (name TEXT)").unwrap();
        assert!(matches!(migrate(&mut db, path), Err(LedgerError::Foreign { .. })));
    }

    #[test]
    fn a_step_that_fails_leaves_nothing_of_itself() {
        let mut db = Connection::open_in_memory().unwrap();
        assert!(apply(&mut db, 1, "CREATE TABLE a (b INTEGER) STRICT; CREATE NONSENSE;").is_err());
        assert_eq!(schema(&db), Vec::<String>::new());
        assert_eq!(version(&db, Path::new("ledger.db")).unwrap(), 0);
    }
}
