//! The ledger: totals that survive everything, in one SQLite file.
//!
//! One writer, [`Ledger`], which the daemon holds together with the lock of its state folder; any
//! number of [`Reader`]s in other processes.

use std::{ops::ControlFlow, path::Path};

use crate::accounting::{
    reading::Layer,
    subject::{Subject, SubjectKind},
    usage::{Bucket, By, Event, Known, Level, Ranking, Span, Usage},
};

/// The ledger's books, opened for reading. Works while a daemon writes, and without root.
pub struct Reader {}

/// The ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {}

impl Reader {
    /// Opens the ledger in a state folder; `None` when there is none yet.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn open(folder: &Path) -> Result<Option<Self>, LedgerError>;

    /// From the first booking to the end of the last; `None` when nothing was booked yet.
    pub fn extent(&self) -> Result<Option<Span>, LedgerError>;

    /// Subjects of which there are records, in the order of their keys; of all kinds for `None`.
    pub fn subjects(&self, kind: Option<SubjectKind>) -> Result<Vec<Known>, LedgerError>;

    /// What a subject was booked in each of these spans, which are in order and apart from one another:
    /// for each span one sum a layer, none for a layer without traffic. Empty for an unknown subject.
    pub fn history(&self, subject: &Subject, spans: &[Span]) -> Result<Vec<Vec<Usage>>, LedgerError>;

    /// The same since ever.
    pub fn totals(&self, subject: &Subject) -> Result<Vec<Usage>, LedgerError>;

    /// Layers in which subjects of a kind are booked in a span, in their order.
    pub fn layers(&self, kind: SubjectKind, span: Span) -> Result<Vec<Layer>, LedgerError>;

    /// The `most` largest subjects of a kind in a span, and what all of them are together.
    pub fn top(&self, kind: SubjectKind, layer: Layer, span: Span, by: By, most: usize) -> Result<Ranking, LedgerError>;

    /// What happened in a span, the oldest first; the last `most` of it.
    pub fn events(&self, span: Span, most: usize) -> Result<Vec<Event>, LedgerError>;

    /// Gives every bucket of a level (for `None`: the finest that there is, so that they add up to the
    /// totals) that begins in a span, in order of time, until told to break. Says how many it gave.
    pub fn buckets(&self, span: Span, level: Option<Level>, subject: Option<&Subject>, each: &mut dyn FnMut(Bucket) -> ControlFlow<()>) -> Result<u64, LedgerError>;
}
