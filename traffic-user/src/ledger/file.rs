//! The ledger's file: how it is made, told from others and opened.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::error::LedgerError;

/// Its name in the state folder.
pub const FILE: &str = "ledger.db";

/// How long a transaction waits for another process.
const PATIENCE: Duration = Duration::from_millis(250);
/// SQLite's number for room that is given back a little at a time.
const INCREMENTAL: u32 = 2;
/// Its group may read it; SQLite gives the files beside it the same rights.
const MODE: u32 = 0o640;

/// Where the ledger of a state folder is.
pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Tells a file from another one that stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(path: &Path) -> Result<Self, LedgerError> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Self { device: meta.dev(), inode: meta.ino() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(LedgerError::Gone { path: path.into() })
            }
            Err(cause) => Err(LedgerError::File { doing: "look at", path: path.into(), cause }),
        }
    }
}

/// Opens the file for writing, made if need be. Says whether it was made.
pub(super) fn open(path: &Path) -> Result<(Connection, bool), LedgerError> {
    let failed = |doing, cause| LedgerError::File { doing, path: path.into(), cause };
    let made = match fs::OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(_) => {
            protect(path).map_err(|cause| failed("protect", cause))?;
            true
        }
        Err(_) if path.is_dir() => return Err(LedgerError::Folder { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LedgerError::Gone { path: path.into() });
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(LedgerError::Denied { path: path.into(), cause: error.into() });
        }
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return Err(LedgerError::ReadOnly { path: path.into(), cause: error.into() });
        }
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            return Err(LedgerError::Full { path: path.into(), cause: error.into() });
        }
        Err(cause) => return Err(failed("create", cause)),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let set_up = || {
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(PATIENCE)?;
        // Has to come before the first table; later it changes nothing, but would wait for the lock of
        // a process that writes.
        let vacuum: u32 = db.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
        if vacuum != INCREMENTAL {
            db.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        }
        db.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut loses no tick that was told to be booked.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -8000)?;
        db.pragma_update(None, "journal_size_limit", 16 << 20)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    };
    Ok((set_up().map_err(|cause| LedgerError::of(path, cause))?, made))
}

/// The group of the folder may read it.
fn protect(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    let Some(folder) = path.parent() else { return Ok(()) };
    let group = fs::metadata(folder)?.gid();
    if fs::metadata(path)?.gid() != group {
        // Only root can always do it; without it the group cannot read, and nothing else is wrong.
        let _ = chown(path, None, Some(group));
    }
    Ok(())
}

/// Bytes of a page, of which the first has the header, and each table one of its own.
const PAGE: u64 = 4096;

/// Opens the file for this process alone, whose lock of the folder keeps other writers away: then
/// nothing is made beside it, for which there may be no room. `None` when there is none, or nothing in it.
pub(super) fn open_alone(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    // What is written ahead lies beside the file, and not beside a link to it.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut ahead = path.as_os_str().to_owned();
    ahead.push("-wal");
    // A file of one page has no table, and the start that made it found no room for more.
    if bytes(path) <= PAGE && bytes(Path::new(&ahead)) == 0 {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(PATIENCE)?;
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // What is damaged is kept as it was found.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(Some(db))
}

/// Opens the file for reading; `None` when there is none.
pub(super) fn open_to_read(path: &Path) -> Result<Option<Connection>, LedgerError> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => return Err(LedgerError::Folder { path: path.into() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(LedgerError::Denied { path: path.into(), cause: error.into() });
        }
        Err(cause) => {
            return Err(LedgerError::File { doing: "look at", path: path.into(), cause });
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = |uri: Option<String>| {
        let db = match uri {
            Some(uri) => Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?,
            None => Connection::open_with_flags(path, flags)?,
        };
        db.busy_timeout(PATIENCE)?;
        db.pragma_update(None, "cache_size", -16000)?;
        db.set_prepared_statement_cache_capacity(32);
        // Touches the file, so that what is wrong with it is told now.
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(db)
    };
    match connect(None) {
        Ok(db) => Ok(Some(db)),
        // Nobody has it open, and we may not make the files that sharing it takes: it stands still.
        Err(error) if stands_still(path, &error) => {
            connect(immutable(path)).map(Some).map_err(|cause| LedgerError::of(path, cause))
        }
        Err(cause) => Err(LedgerError::of(path, cause)),
    }
}

fn stands_still(path: &Path, error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
    let denied = matches!(error.sqlite_error_code(), Some(CannotOpen | ReadOnly));
    let journal = fs::metadata(beside(path, "-wal")).map_or(0, |meta| meta.len());
    denied && journal == 0
}

/// A path as SQLite's URI.
fn immutable(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    let mut text = String::from("file:");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02x}")),
        }
    }
    text.push_str("?immutable=1");
    Some(text)
}

/// A file that SQLite keeps beside the ledger.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Puts a ledger that cannot be used out of the way, with what belongs to it. Gives its new place.
///
/// `now` is seconds of Unix time.
pub(super) fn set_aside(path: &Path, now: i64) -> Result<PathBuf, LedgerError> {
    let date = jiff::Timestamp::from_second(now)
        .map_or_else(|_| now.to_string(), |now| now.strftime("%Y%m%dT%H%M%SZ").to_string());
    let mut aside = beside(path, &format!(".corrupt-{date}"));
    let mut count = 1;
    while aside.exists() {
        count += 1;
        aside = beside(path, &format!(".corrupt-{date}-{count}"));
    }
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|cause| LedgerError::File {
            doing: "set aside",
            path: from.into(),
            cause,
        })
    };
    // What was not written back to the file yet goes first, so that no new ledger can find it.
    for ending in ["-wal", "-shm"] {
        let file = beside(path, ending);
        if file.exists() {
            rename(&file, &beside(&aside, ending))?;
        }
    }
    rename(path, &aside)?;
    Ok(aside)
}
