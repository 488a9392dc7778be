//! The operations on rules of the tool that this replaces, under the names that its users know.

use crate::{
    accounting::{
        ident::Group,
        reading::{Snapshot, Traffic},
        rules::{Family, RulesReport},
        zeros::Zeros,
    },
    meter::{self, MeterError},
};

/// What rules counted on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTraffic {
    /// The group that has the port. With more than one port in it, `traffic` is that of all of them:
    /// they are counted as one.
    pub group: Group,
    /// Bytes and packets since the rules were set, layer `l3-skb`.
    pub traffic: Traffic,
}

/// How much traffic our rules of nftables or iptables have counted on a port, IPv6 alone with `ipv6`, else
/// IPv4 alone. Exactly this port: 80 is not found in 8080.
///
/// Cumulative since the epoch of the rules began, whatever was reset, bytes of socket buffers from the IP header on
/// (`l3-skb`); input enters on the port, output leaves from it. Reads once and resets nothing. `None` when
/// no rule of ours counts the port: nothing was measured, which is not zero.
///
/// # Errors
///
/// [`MeterError::Denied`] without the right to list rules; when there are rules of ours and they cannot be
/// read.
///
/// ```no_run
/// use traffic_user::{bytes_2_human_readable, calcul_iptables_traffic};
///
/// if let Some(counted) = calcul_iptables_traffic(443, false)? {
///     println!("{}", bytes_2_human_readable(counted.traffic.bytes().try_into()?, 1)?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn calcul_iptables_traffic(port: u16, ipv6: bool) -> Result<Option<PortTraffic>, MeterError> {
    let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
    Ok(meter::rules_installed()?.and_then(|snapshot| of_port(snapshot, port, family)))
}

fn of_port(snapshot: Snapshot, port: u16, family: Family) -> Option<PortTraffic> {
    let report = RulesReport::new(String::new(), snapshot, Some(family), &Zeros::default());
    let has = |group: &Group| {
        group.ranges().iter().any(|range| (range.first()..=range.last()).contains(&port))
    };
    // A port may be in two groups, one of each transport; the former life of one that is counted no
    // longer is not it.
    let mut found: Option<PortTraffic> = None;
    for reading in report.snapshot.groups.iter().filter(|reading| reading.watched) {
        if !has(&reading.group) {
            continue;
        }
        let traffic = report.traffic(&reading.lanes);
        match &mut found {
            Some(found) => found.traffic = found.traffic.plus(traffic),
            None => found = Some(PortTraffic { group: (*reading.group).clone(), traffic }),
        }
    }
    found
}

/// Takes off our rules of the group that has this port, IPv4 and IPv6, and says which. Rules of others stay,
/// and so does the rule of 8080 when 80 is asked for.
///
/// # Errors
///
/// When they cannot be changed; they are as they were then.
pub fn clean_iptables(port: u16) -> Result<Vec<String>, MeterError> {
    meter::clean_rules_of(port, false)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::accounting::reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Window};

    #[test]
    fn a_port_is_found_by_its_number_and_not_by_its_digits() {
        let reading = |text: &str, bytes, watched| GroupReading {
            group: Arc::new(text.parse().unwrap()),
            lanes: Lanes {
                tcp4: Traffic { input_bytes: bytes, ..Traffic::default() },
                tcp6: Traffic { output_bytes: bytes * 1000, ..Traffic::default() },
                ..Lanes::default()
            },
            watched,
        };
        let snapshot = Snapshot {
            meter: "iptables",
            layer: Layer::L3Skb,
            epoch: Epoch(1),
            since: None,
            window: Window::default(),
            coverage: Coverage::Complete,
            groups: Arc::new([
                reading("8080", 1, true),
                reading("443/tcp", 2, true),
                reading("443/udp", 4, true),
                reading("1000-2000+3000", 8, true),
                reading("180", 16, false),
            ]),
            skipped: None,
        };
        let bytes = |port, family| {
            of_port(snapshot.clone(), port, family).map(|found| found.traffic.bytes())
        };
        assert_eq!(bytes(80, Family::Ipv4), None);
        assert_eq!(bytes(8080, Family::Ipv4), Some(1));
        assert_eq!(bytes(443, Family::Ipv4), Some(6));
        assert_eq!(bytes(443, Family::Ipv6), Some(6000));
        assert_eq!(bytes(1999, Family::Ipv4), Some(8));
        assert_eq!(bytes(3000, Family::Ipv6), Some(8000));
        assert_eq!(bytes(180, Family::Ipv4), None);
        assert_eq!(bytes(0, Family::Ipv4), None);
    }
}
