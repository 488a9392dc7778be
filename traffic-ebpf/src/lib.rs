//! What the eBPF programs and user space share: the layout of map values ([`abi`]) and the packet
//! parser ([`packet`]).
//!
//! `no_std` and without a dependency, so that the same lines are compiled for the BPF target and for
//! the host, where they are tested, fuzzed and checked against the loaded program. The programs
//! themselves are this package's binary; only the BPF target builds it.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod packet;
