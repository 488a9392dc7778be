//! The tests.

mod bytecode;
