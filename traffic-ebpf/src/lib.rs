//! What the eBPF programs and user space share: the layout of map values ([`abi`]) and the packet
//! parser ([`packet`]).
//!
//! `no_std` and without a dependency, so that the same lines are compiled for the BPF target and for
//! the host, where they are tested, fuzzed and checked against the loaded program. The programs
//! themselves are this package's binary; only the BPF target builds it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

// The corpus' loader is shared with package `traffic-tests` and calls this crate by its name.
#[cfg(test)]
extern crate self as traffic_ebpf;

pub mod abi;
pub mod packet;
