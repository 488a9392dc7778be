//! What can be wrong with a proxy's configuration, where, and what to do about it.

use std::{fmt, io, path::PathBuf, sync::Arc};

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which file.
    pub file: Arc<std::path::Path>,
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
    /// Path of keys to it, such as `inbounds[2].port`; empty for the whole file.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}, column {}", self.file.display(), self.line, self.column)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, ": {}", self.key) }
    }
}

/// One thing that is to be said about a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What, and what to do. Safe to print.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxyConfigError {
    /// A file or folder cannot be read.
    #[error("cannot read the proxy's config {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// A device, a socket, a pipe.
    #[error("the proxy's config {} is neither a file nor a folder", .path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// No JSON file to read.
    #[error("there is no JSON file in {}", Paths(.paths))]
    NoFiles {
        /// The folders that were looked through.
        paths: Vec<PathBuf>,
    },
    /// Larger than any config.
    #[error("the proxy's config {} is larger than {} MiB", .path.display(), .limit >> 20)]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Most bytes that are read.
        limit: u64,
    },
    /// Nothing but blanks and comments.
    #[error("the proxy's config {} is empty", .path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// It ends in the middle of a value or a comment.
    #[error(
        "the proxy's config is cut off: {place}: the file ends before its last bracket is closed"
    )]
    Truncated {
        /// Where it ends.
        place: Place,
    },
    /// It is no JSON.
    #[error("the proxy's config is not JSON: {0}")]
    Syntax(Mistake),
    /// It says what a proxy does not accept; all of it.
    #[error("the proxy's config is wrong:{}", Lines(.0))]
    Wrong(Vec<Mistake>),
}

impl ProxyConfigError {
    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Read { .. } => {
                "check the path and its permissions, or name another with --proxy-config"
            }
            Self::Kind { .. } | Self::NoFiles { .. } => {
                "name the config file that the proxy is started with, or its folder, with --proxy-config"
            }
            Self::TooLarge { .. } => {
                "name the proxy's config, not another file, with --proxy-config"
            }
            Self::Empty { .. } | Self::Truncated { .. } => {
                "write the file again: it may have been cut off while it was written"
            }
            Self::Syntax(_) | Self::Wrong(_) => {
                "correct the file; `v2ray test -c FILE` or `xray run -test -c FILE` checks it"
            }
        }
    }
}

struct Lines<'a>(&'a [Mistake]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}
