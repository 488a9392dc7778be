//! The tests.

mod api;
mod bytecode;
mod cgroup;
mod cli;
mod coexist;
mod config;
mod devices;
mod fallback;
mod history;
mod iptables;
mod kernels;
mod ledger;
mod lifecycle;
mod listening;
mod lost;
mod messages;
mod namespaces;
mod nft;
mod proxy;
mod rights;
mod schema;
mod service;
mod stats;
mod takeover;
mod tc;
