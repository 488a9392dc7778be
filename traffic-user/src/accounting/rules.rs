//! What rules of a firewall counted, as a report.

use super::{
    reading::{Lane, Lanes, Snapshot, Traffic},
    zeros::Zeros,
};

/// One version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// As the outputs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// What rules counted since their epoch began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesReport {
    /// Name of this host.
    pub host: String,
    /// The reading of all rules.
    pub snapshot: Snapshot,
    /// One version of IP only; `None` is both.
    pub family: Option<Family>,
    /// For each group when it was reset, nanoseconds of Unix time: its numbers begin there.
    pub resets: Vec<Option<i128>>,
}

impl RulesReport {
    /// What is shown to people: from the last reset of each group on.
    pub fn new(
        host: String,
        mut snapshot: Snapshot,
        family: Option<Family>,
        zeros: &Zeros,
    ) -> Self {
        let resets = zeros.apply(&mut snapshot);
        Self { host, snapshot, family, resets }
    }

    /// Traffic of the versions of IP that were asked for.
    pub fn traffic(&self, lanes: &Lanes) -> Traffic {
        Lane::ALL
            .into_iter()
            .filter(|lane| self.family.is_none_or(|family| (family == Family::Ipv4) == lane.ipv4()))
            .map(|lane| *lanes.lane(lane))
            .sum()
    }

    /// All groups together.
    pub fn total(&self) -> Traffic {
        self.snapshot.groups.iter().map(|reading| self.traffic(&reading.lanes)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::reading::{Coverage, Epoch, GroupReading, Layer, Window},
        *,
    };

    #[test]
    fn one_version_of_ip_is_counted_alone_and_both_add_up() {
        let bytes = |input_bytes| Traffic { input_bytes, ..Traffic::default() };
        let lanes = Lanes { tcp4: bytes(1), tcp6: bytes(10), udp4: bytes(100), udp6: bytes(1000) };
        let group = Arc::new("443".parse().unwrap());
        let snapshot = Snapshot {
            meter: "nft",
            layer: Layer::L3Skb,
            epoch: Epoch(1),
            since: None,
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: Arc::new([GroupReading { group, lanes, watched: true }]),
            skipped: None,
        };
        let total = |family| {
            let snapshot = snapshot.clone();
            RulesReport::new("h".into(), snapshot, family, &Zeros::default()).total().input_bytes
        };
        let sums = [None, Some(Family::Ipv4), Some(Family::Ipv6)].map(total);
        assert_eq!(sums, [1111, 101, 1010]);
    }
}
