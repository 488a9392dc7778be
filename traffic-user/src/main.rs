//! The binary `traffic`.
fn main() {}
