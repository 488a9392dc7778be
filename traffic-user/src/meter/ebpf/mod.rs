//! The kernel's meter: eBPF programs at tcx, tc or a cgroup.

/// The compiled programs; empty when this binary was built without an eBPF tool chain.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traffic-ebpf"));
