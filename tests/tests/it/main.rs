//! The tests.

mod bytecode;
mod cgroup;
mod cli;
mod coexist;
mod lifecycle;
mod tc;
