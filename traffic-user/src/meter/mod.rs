//! Where counters come from.

pub mod ebpf;
