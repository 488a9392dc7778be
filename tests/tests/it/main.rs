//! The tests.

mod bytecode;
mod tc;
