//! The pure core: what the numbers mean and how they are joined and subtracted.
//!
//! No clock, file, socket, process, runtime or logging: values in, values out. It names no other
//! module of this crate.

pub mod anomaly;
pub mod attribute;
pub mod billing;
pub mod delta;
pub mod frame;
pub mod history;
pub mod ident;
pub mod payload;
pub mod period;
pub mod proxy;
pub mod reading;
pub mod relay;
pub mod report;
pub mod retention;
pub mod rules;
pub mod stats;
pub mod subject;
pub mod tick;
pub mod units;
pub mod usage;
pub mod zeros;
