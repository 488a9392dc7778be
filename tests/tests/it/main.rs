//! The tests.

mod bytecode;
mod cli;
mod coexist;
mod lifecycle;
mod tc;
