//! The tests.

mod api;
mod bytecode;
mod cgroup;
mod cli;
mod coexist;
mod devices;
mod history;
mod kernels;
mod ledger;
mod lifecycle;
mod listening;
mod proxy;
mod stats;
mod takeover;
mod tc;
