//! What a verb cannot do without and may not, or cannot, install itself.

use std::{error::Error, fmt};

/// Something that is not on this machine, with its cure. Ends the verb with exit code 2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What is missing, and what for.
    pub(crate) what: String,
    /// A command, or what else to do.
    pub(crate) cure: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing: {}\n  to get it: {}", self.what, self.cure)
    }
}

impl Error for Missing {}
