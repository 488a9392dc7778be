//! The values behind the outputs, complete before anything is written.

use std::collections::HashMap;

use super::{
    ident::{Group, PortRange, Transport},
    proxy::Inbound,
    reading::{Snapshot, Traffic},
};

/// One device that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Bytes of link header on each frame: wire bytes are `bytes + packets * link_header`.
    pub link_header: u32,
    /// Where the program stands.
    pub hook: &'static str,
}

/// What one meter says at one time, with what is needed to understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Name of this host.
    pub host: String,
    /// The readings.
    pub snapshot: Snapshot,
    /// Devices that are counted.
    pub devices: Vec<DeviceReport>,
    /// Hooks that would be better, and why they are not used.
    pub passed_over: Vec<(&'static str, String)>,
}

impl Dump {
    /// The key of each reading in the outputs, in the order of the readings.
    ///
    /// Among the groups of one snapshot the keys are unique: two retired or live groups with the same
    /// ports differ in their transport.
    pub fn keys(&self) -> Vec<String> {
        let groups = || self.snapshot.groups.iter().map(|reading| &*reading.group);
        let mut twins: HashMap<&[PortRange], (Transport, bool)> = HashMap::new();
        for group in groups() {
            let (transport, twin) =
                twins.entry(group.ranges()).or_insert((group.transport(), false));
            *twin |= *transport != group.transport();
        }
        groups()
            .map(|group| {
                let twin = twins.get(group.ranges()).is_some_and(|(_, twin)| *twin);
                let ports = group.ports_text();
                if twin { format!("{ports}{}", group.transport().suffix()) } else { ports }
            })
            .collect()
    }
}

/// One configured port group, and its traffic where it is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortReport {
    /// Which.
    pub group: Group,
    /// Its key in the outputs.
    pub key: String,
    /// The inbound of the proxy that it is.
    pub inbound: Option<Inbound>,
    /// Since the epoch began; `None` when nothing counts it.
    pub traffic: Option<Traffic>,
    /// Whether something on this host listens on it now; `None` when that is not known.
    pub listening: Option<bool>,
    /// Whether it is counted now.
    pub watched: bool,
}
