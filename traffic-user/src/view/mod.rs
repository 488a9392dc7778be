//! Finished reports to text: tables for people, JSON for scripts. Opens nothing, decides nothing.

pub mod json;
pub mod rules;
pub mod stats;
pub mod table;
