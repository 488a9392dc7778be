//! Fixtures: what the tests stand on, as values that clean up after themselves.

pub mod bpf;
pub mod corpus;
pub mod loaded;
pub mod need;
pub mod random;
