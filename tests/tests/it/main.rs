//! The tests.

mod api;
mod bytecode;
mod cgroup;
mod cli;
mod coexist;
mod devices;
mod kernels;
mod ledger;
mod lifecycle;
mod listening;
mod proxy;
mod stats;
mod takeover;
mod tc;
