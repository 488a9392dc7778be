//! Counts the traffic of V2Ray and Xray servers: in the kernel per port, in the proxy per user.
//!
//! The data goes one way: a [`meter`] gives a snapshot, [`accounting`] joins and subtracts, `view`
//! shows. `accounting` is pure; everything that touches the world is in the other modules.

pub mod accounting;
pub mod cli;
pub mod config;
mod daemon;
mod fault;
pub mod ledger;
pub mod meter;
pub mod proxy_config;
mod rule_traffic;
mod run;
mod state;
mod stats_factory;
pub mod view;

pub use accounting::units::bytes_2_human_readable;
pub use rule_traffic::{PortTraffic, calcul_iptables_traffic, clean_iptables};
pub use stats_factory::{ExportFormat, Stats, StatsError, StatsFactory, all_port};
