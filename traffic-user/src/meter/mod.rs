//! Where counters come from: the kernel's meters, facts of this host and the choice among them, and the
//! proxy's meter.

pub mod devices;
pub mod ebpf;
mod error;
pub mod host;
pub mod iptables;
pub mod listening;
mod lock;
mod netlink;
pub mod proxy;

pub use error::MeterError;
pub use lock::{Lock, netns};
