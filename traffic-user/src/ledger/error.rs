//! Why the ledger cannot be read or written, and what helps.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// `SQLITE_IOERR_SHMSIZE`: the file that processes share could not grow.
const SHARED_TAKES_NO_MORE: i32 = 4874;

/// The ledger cannot be read or written. Nothing of what was to be stored is stored then.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// No room on the disk.
    #[error("the disk is full: cannot write the ledger {}", .path.display())]
    Full {
        /// Which file.
        path: PathBuf,
        /// The answer.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The file or its file system may only be read.
    #[error("the ledger {} may only be read", .path.display())]
    ReadOnly {
        /// Which file.
        path: PathBuf,
        /// The answer.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Another process holds it.
    #[error("the ledger {} is locked by another process", .path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
        /// SQLite's answer.
        #[source]
        cause: rusqlite::Error,
    },
    /// The file that was open is not there any more, or its folder.
    #[error("the ledger {} is gone", .path.display())]
    Gone {
        /// Which file.
        path: PathBuf,
    },
    /// Another file is in its place.
    #[error("the ledger {} was replaced by another file", .path.display())]
    Replaced {
        /// Which file.
        path: PathBuf,
    },
    /// It cannot be understood any more.
    #[error("the ledger {} is damaged", .path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A newer version of this program wrote it.
    #[error("the ledger {} has schema {found}, and this version knows {known}", .path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// An older version wrote it, and whoever only reads cannot bring it up to date.
    #[error("the ledger {} has the older schema {found}", .path.display())]
    TooOld {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Short buckets were let go while they were read one by one.
    #[error("the shortest buckets of the time that was just read in the ledger {} were let go", .path.display())]
    LetGo {
        /// Which file.
        path: PathBuf,
    },
    /// It is a folder.
    #[error("the ledger {} is a folder", .path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
    },
    /// It is a database of something else.
    #[error("{} is a database, but no ledger of ours", .path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// No rights to it.
    #[error("no right to open the ledger {}", .path.display())]
    Denied {
        /// Which file.
        path: PathBuf,
        /// The answer.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A file cannot be made, looked at or renamed.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// SQLite fails in another way.
    #[error("cannot use the ledger {}", .path.display())]
    Sql {
        /// Which file.
        path: PathBuf,
        /// SQLite's answer.
        #[source]
        cause: rusqlite::Error,
    },
}

impl LedgerError {
    /// What helps.
    pub fn remedy(&self) -> String {
        match self {
            Self::Full { .. } => {
                "make room on the disk; counting goes on and is booked then".into()
            }
            Self::ReadOnly { .. } => {
                "mount the file system writable, or choose another folder with \
                                      --state; counting goes on and is booked then"
                    .into()
            }
            Self::Locked { path, .. } => {
                format!("end what holds it open for writing (`fuser {}` names it)", path.display())
            }
            Self::Gone { path } | Self::Replaced { path } => format!(
                "put it back, or leave it: a new one is begun as soon as {} can be written",
                path.parent().unwrap_or(path).display()
            ),
            Self::Corrupt { path, .. } => format!(
                "the daemon sets it aside as {}.corrupt-DATE and begins a new one; `sqlite3 FILE \
                 .recover` may save what is in it",
                path.display()
            ),
            Self::TooNew { .. } => {
                "run the version that wrote it, or choose another folder with --state".into()
            }
            Self::TooOld { .. } => {
                "start `traffic run` once: it brings the ledger up to date".into()
            }
            Self::LetGo { .. } => {
                "begin again, and take the lines faster; or ask for one length with --level".into()
            }
            Self::Folder { .. } => {
                "move that folder away, or choose another folder with --state".into()
            }
            Self::Foreign { .. } => {
                "move that file away, or choose another folder with --state".into()
            }
            Self::Denied { .. } => "run as root, or as a member of the folder's group".into(),
            Self::File { path, .. } => {
                format!("look at the rights and the disk of {}", path.display())
            }
            Self::Sql { .. } => "look at the disk; counting goes on and is booked later".into(),
        }
    }

    /// Whether the file itself is the fault, so that waiting does not help.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    /// Understands what SQLite says of the file at `path`.
    pub(super) fn of(path: &Path, cause: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        if cause.sqlite_error().is_some_and(|error| error.extended_code == SHARED_TAKES_NO_MORE) {
            return Self::Full { path, cause: cause.into() };
        }
        match cause.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path, cause: cause.into() },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path, cause: cause.into() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Locked { path, cause }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path, cause: cause.into() }
            }
            Some(ErrorCode::CannotOpen) if !path.exists() => Self::Gone { path },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                Self::Denied { path, cause: cause.into() }
            }
            _ => Self::Sql { path, cause },
        }
    }
}
