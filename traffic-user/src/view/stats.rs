//! The merged report as JSON, table, CSV and plain text.
//!
//! [`Document`] is the contract with scripts and also what a daemon answers, so the other forms are made
//! from it: they show the same whoever has counted.

mod document;
mod text;

pub use document::{ApiDocument, Beside, Document, EventDocument, GroupDocument};
pub(crate) use text::spreadsheet;
pub use text::{csv, live, plain, table};

/// What of it is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Groups with their users, and the totals.
    #[default]
    Whole,
    /// One line a user.
    Users,
    /// One line a group.
    Groups,
    /// The totals.
    Total,
}
