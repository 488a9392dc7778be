//! Where counters come from: the kernel's meters, facts of this host and the choice among them, and the
//! proxy's meter.

pub mod devices;
pub mod ebpf;
mod error;
pub mod host;
pub mod iptables;
mod kernel;
pub mod listening;
mod lock;
mod netlink;
pub mod nft;
pub mod proxy;
mod takeover;

pub use error::MeterError;
pub(crate) use error::chain;
pub use kernel::{
    Before, Meter, Options, clean, clean_rules, clean_rules_of, gone, installed, rules_installed,
    try_all,
};
pub use lock::{Holder, Lock, netns};
pub use takeover::Handover;
