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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Window},
        *,
    };

    #[test]
    fn a_key_says_its_transport_where_another_group_has_the_same_ports() {
        let reading = |text: &str| GroupReading {
            group: Arc::new(text.parse().unwrap()),
            lanes: Lanes::default(),
            watched: true,
        };
        let groups = ["443/tcp=a", "443/udp=b", "80/tcp", "443+80", "53/udp", "53/udp=again"];
        let snapshot = Snapshot {
            meter: "tcx",
            layer: Layer::L3,
            epoch: Epoch(1),
            since: None,
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: groups.into_iter().map(reading).collect(),
            skipped: None,
        };
        let dump =
            Dump { host: "h".into(), snapshot, devices: Vec::new(), passed_over: Vec::new() };
        assert_eq!(dump.keys(), ["443/tcp", "443/udp", "80", "80,443", "53", "53"]);
    }
}
