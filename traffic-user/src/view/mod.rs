//! Finished reports to text: tables and pictures for people, JSON and CSV for scripts. Opens nothing, decides nothing.

mod books;
pub mod bucket;
mod chart;
pub mod history;
pub mod json;
pub mod plot;
pub mod rules;
pub(crate) mod sheet;
pub mod stats;
pub mod summary;
pub mod table;
pub mod top;
