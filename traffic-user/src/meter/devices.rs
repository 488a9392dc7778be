//! Which devices carry the host's traffic, and news of changes. Facts come over netlink; the choice
//! among them ([`choose`]) is pure.

mod events;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use globset::{Glob, GlobMatcher};
use netlink_packet_route::{
    link::{
        InfoData, InfoGre, InfoGre6, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    route::{RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{Handle, RouteMessageBuilder};

pub use events::Events;

use super::{error::MeterError, netlink};
use crate::accounting::{reading::Traffic, relay::DeviceReading};

/// Bytes of an Ethernet header.
const ETHERNET_HEADER: u32 = 14;
/// Bytes of a VLAN tag.
const VLAN_TAG: u32 = 4;

/// What comes before the IP header on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: tun, WireGuard, PPP, IP tunnels.
    Bare,
    /// Something else, by its ARPHRD number.
    Other(u16),
}

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number; another device never gets it while this one is there.
    pub index: u32,
    /// Its name now.
    pub name: String,
    /// What its packets begin with.
    pub link: LinkKind,
    /// Bytes of the link header of each frame on the wire: 14, 18 with a VLAN tag, 0 without.
    pub link_header: u32,
    /// Bytes of link header that the device's own counters have in each packet: received, sent.
    pub counted_header: [u32; 2],
    /// The device that carries this one's frames (VLAN, macvlan).
    pub carrier: Option<u32>,
    /// The device that this one is a part of (bridge, bond).
    pub master: Option<u32>,
    /// Whether it is the host's own loopback.
    pub loopback: bool,
    /// Whether it is a VRF: its parts carry what its sockets send and get, and it nothing but what they send
    /// one another.
    pub vrf: bool,
}

/// All devices, and which of them a default route uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every device of this network namespace, by number.
    pub devices: Vec<Device>,
    /// Numbers of those with a default route, IPv4 or IPv6, in any table.
    pub default_routes: BTreeSet<u32>,
}

impl Facts {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// [`MeterError::Netlink`].
    pub fn gather() -> Result<Self, MeterError> {
        netlink::ask("list devices and routes", |handle| async move { facts(&handle).await })
    }
}

/// What `--iface` asked for.
#[derive(Clone, Debug, Default)]
pub enum Wanted {
    /// The devices with a default route.
    #[default]
    DefaultRoutes,
    /// Those whose name matches one of these.
    Named(Vec<GlobMatcher>),
}

impl Wanted {
    /// From globs; none means the default routes.
    ///
    /// # Errors
    ///
    /// The glob's own words when it cannot be read.
    pub fn new(globs: &[String]) -> Result<Self, globset::Error> {
        if globs.is_empty() {
            return Ok(Self::DefaultRoutes);
        }
        let matchers = globs.iter().map(|glob| Ok(Glob::new(glob)?.compile_matcher()));
        Ok(Self::Named(matchers.collect::<Result<_, globset::Error>>()?))
    }
}

/// Which devices are to be counted, and why others that were asked for are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// To be counted.
    pub devices: Vec<Device>,
    /// Left out, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Patterns that match nothing.
    pub unmatched: Vec<String>,
}

/// Chooses the devices to count on, so that no byte passes two of them.
///
/// A VLAN or macvlan on a chosen device is left out, because each of its frames passes that one too, however
/// many stand in between; so is a bridge or bond whose port is one. A part of a chosen bridge or bond is left
/// out, because the whole sees what this host sends and receives. A chosen VRF stands for its parts.
pub fn choose(facts: &Facts, wanted: &Wanted) -> Choice {
    let mut choice = Choice::default();
    let mut chosen: BTreeMap<u32, &Device> = match wanted {
        Wanted::DefaultRoutes => facts
            .devices
            .iter()
            .filter(|device| facts.default_routes.contains(&device.index) && !device.loopback)
            .map(|device| (device.index, device))
            .collect(),
        Wanted::Named(globs) => {
            let mut chosen = BTreeMap::new();
            for glob in globs {
                let before = chosen.len();
                let mut any = false;
                for device in &facts.devices {
                    // A pattern means real devices; loopback is counted only by its name.
                    let named = glob.glob().glob() == device.name;
                    if named || (!device.loopback && glob.is_match(&device.name)) {
                        any = true;
                        chosen.insert(device.index, device);
                    }
                }
                if !any && chosen.len() == before {
                    choice.unmatched.push(glob.glob().glob().to_owned());
                }
            }
            chosen
        }
    };
    let vrfs: Vec<&Device> = chosen.values().copied().filter(|device| device.vrf).collect();
    for vrf in vrfs {
        chosen.remove(&vrf.index);
        choice
            .left_out
            .push((vrf.name.clone(), "its parts carry what it sends and gets".to_owned()));
        let parts = facts.devices.iter().filter(|device| device.master == Some(vrf.index));
        chosen.extend(parts.map(|device| (device.index, device)));
    }
    // One that is left out already hides nobody, so that of two that hide one another one stays.
    let mut left: BTreeMap<u32, String> = BTreeMap::new();
    for index in chosen.keys() {
        let stays = |other: &u32| chosen.contains_key(other) && !left.contains_key(other);
        if let Some(other) = below(facts, *index).into_iter().find(stays) {
            let name = chosen.get(&other).map_or("", |other| &other.name);
            left.insert(*index, format!("its frames pass {name} as well"));
        }
    }
    for index in chosen.keys() {
        let stays = |other: &u32| chosen.contains_key(other) && !left.contains_key(other);
        if let Some(other) = wholes(facts, *index).into_iter().find(stays)
            && !left.contains_key(index)
        {
            let name = chosen.get(&other).map_or("", |other| &other.name);
            left.insert(*index, format!("it is a part of {name}"));
        }
    }
    for (index, device) in &chosen {
        match left.remove(index) {
            None => choice.devices.push((*device).clone()),
            Some(reason) => choice.left_out.push((device.name.clone(), reason)),
        }
    }
    choice
}

/// Devices that frames of this one pass on their way to and from the wire: what carries it, or carries a part
/// of it, and so on. Its own parts are not among them, as long as nothing but they carry it.
fn below(facts: &Facts, device: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    // With each: whether it was reached by way of a carrier, and not as a mere part.
    let mut open = vec![(device, false)];
    let mut seen = BTreeSet::new();
    while let Some(at) = open.pop() {
        if !seen.insert(at) {
            continue;
        }
        let (index, carried) = at;
        if carried && index != device {
            found.insert(index);
        }
        for other in &facts.devices {
            if other.index == index {
                open.extend(other.carrier.map(|carrier| (carrier, true)));
            }
            if other.master == Some(index) {
                open.push((other.index, carried));
            }
        }
    }
    found
}

/// What this device is a part of, and that in turn.
fn wholes(facts: &Facts, device: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut at = device;
    let master = |index| facts.devices.iter().find(|other| other.index == index)?.master;
    while let Some(whole) = master(at).filter(|whole| found.insert(*whole)) {
        at = whole;
    }
    found.remove(&device);
    found
}

/// Whether there is a device of this number now.
pub(super) fn is_there(index: u32) -> bool {
    // Of one that is not there, it gives an empty name and no error.
    nix::net::if_::if_indextoname(index).is_ok_and(|name| !name.is_empty())
}

/// What these devices have counted themselves since they were made. One that is gone is left out.
///
/// # Errors
///
/// [`MeterError::Netlink`].
pub fn own_counters(devices: &[Device]) -> Result<Vec<DeviceReading>, MeterError> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    netlink::ask("read the counters of devices", |handle| async move {
        let mut readings = Vec::with_capacity(devices.len());
        for device in devices {
            let mut links = handle.link().get().match_index(device.index).execute();
            match links.try_next().await {
                Ok(message) => readings.extend(message.and_then(|link| counted(device, &link))),
                Err(rtnetlink::Error::NetlinkError(error)) if is_gone(error.raw_code()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(readings)
    })
}

fn is_gone(code: i32) -> bool {
    code.abs() == nix::errno::Errno::ENODEV as i32
}

fn counted(device: &Device, message: &LinkMessage) -> Option<DeviceReading> {
    let counters = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(counters) => Some(counters),
        _ => None,
    })?;
    let [received, sent] = device.counted_header.map(u64::from);
    let less =
        |bytes: u64, packets: u64, header| bytes.saturating_sub(packets.saturating_mul(header));
    Some(DeviceReading {
        index: device.index,
        traffic: Traffic {
            input_bytes: less(counters.rx_bytes, counters.rx_packets, received),
            input_packets: counters.rx_packets,
            output_bytes: less(counters.tx_bytes, counters.tx_packets, sent),
            output_packets: counters.tx_packets,
        },
    })
}

async fn facts(handle: &Handle) -> Result<Facts, rtnetlink::Error> {
    Ok(Facts { devices: devices(handle).await?, default_routes: default_routes(handle).await? })
}

async fn devices(handle: &Handle) -> Result<Vec<Device>, rtnetlink::Error> {
    let mut links = handle.link().get().execute();
    let mut devices = Vec::new();
    while let Some(message) = links.try_next().await? {
        devices.extend(device(&message));
    }
    devices.sort_unstable_by_key(|device| device.index);
    Ok(devices)
}

async fn default_routes(handle: &Handle) -> Result<BTreeSet<u32>, rtnetlink::Error> {
    let mut found = BTreeSet::new();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let mut routes = handle.route().get(family).execute();
        while let Some(route) = routes.try_next().await? {
            if is_default(&route) {
                found.extend(outputs(&route));
            }
        }
    }
    Ok(found)
}

fn device(message: &LinkMessage) -> Option<Device> {
    let header = &message.header;
    let (mut name, mut lower, mut elsewhere, mut master, mut kind, mut outer) =
        (None, None, false, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(of) => kind = Some(of.clone()),
                        LinkInfo::Data(data) => outer = begins_with_outer(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let vlan = kind == Some(InfoKind::Vlan);
    // `IFLA_LINK` names the peer of a veth and the outer device of a tunnel as well.
    let rides = matches!(
        kind,
        Some(
            InfoKind::Vlan
                | InfoKind::MacVlan
                | InfoKind::MacVtap
                | InfoKind::IpVlan
                | InfoKind::IpVtap
        )
    );
    let vrf = kind == Some(InfoKind::Vrf);
    let link = match link_kind(header.link_layer_type) {
        LinkKind::Bare if outer => LinkKind::Other(header.link_layer_type.into()),
        link => link,
    };
    let link_header = match link {
        LinkKind::Ethernet if vlan => ETHERNET_HEADER + VLAN_TAG,
        LinkKind::Ethernet => ETHERNET_HEADER,
        LinkKind::Bare | LinkKind::Other(_) => 0,
    };
    let counted_header = match (link, &kind) {
        _ if header.flags.contains(LinkFlags::Loopback) => [0, 0],
        (LinkKind::Bare | LinkKind::Other(_), _) => [0, 0],
        // They are handed packets whose header another device has read already.
        (LinkKind::Ethernet, Some(InfoKind::Vlan | InfoKind::Bridge | InfoKind::Vrf)) => {
            [0, ETHERNET_HEADER]
        }
        (LinkKind::Ethernet, _) => [ETHERNET_HEADER; 2],
    };
    Some(Device {
        index: header.index,
        name: name?,
        link,
        link_header,
        counted_header,
        carrier: lower.filter(|_| rides && !elsewhere),
        master,
        loopback: header.flags.contains(LinkFlags::Loopback),
        vrf,
    })
}

/// Whether a tunnel's packets begin with the outer header: those of GRE without one far end, unless routes or
/// programs name it for each packet.
fn begins_with_outer(data: &InfoData) -> bool {
    match data {
        InfoData::GreTun(all) => {
            let to_one = all.iter().any(|one| match one {
                InfoGre::Remote(far) => !far.is_unspecified() && !far.is_multicast(),
                InfoGre::CollectMetadata => true,
                _ => false,
            });
            !to_one
        }
        InfoData::GreTun6(all) => {
            let to_one = all.iter().any(|one| match one {
                InfoGre6::Remote(far) => !far.is_unspecified(),
                InfoGre6::CollectMetadata => true,
                _ => false,
            });
            !to_one
        }
        _ => false,
    }
}

fn link_kind(layer: LinkLayerType) -> LinkKind {
    match layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkKind::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => LinkKind::Bare,
        other => LinkKind::Other(other.into()),
    }
}

/// A default route, or one of the two halves by which VPN clients cover it.
fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length <= 1 && route.header.kind == RouteType::Unicast
}

fn outputs(route: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.push(*index),
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str) -> Device {
        Device {
            index,
            name: name.to_owned(),
            link: LinkKind::Ethernet,
            link_header: 14,
            counted_header: [14, 14],
            carrier: None,
            master: None,
            loopback: name == "lo",
            vrf: false,
        }
    }

    fn facts(devices: Vec<Device>, routes: &[u32]) -> Facts {
        Facts { devices, default_routes: routes.iter().copied().collect() }
    }

    #[track_caller]
    fn check(facts: &Facts, globs: &[&str], want: &[&str], left_out: &[&str]) {
        let globs: Vec<_> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        let choice = choose(facts, &Wanted::new(&globs).unwrap());
        let names: Vec<_> = choice.devices.iter().map(|device| device.name.as_str()).collect();
        let others: Vec<_> = choice.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, others), (want.to_vec(), left_out.to_vec()));
    }

    #[test]
    fn a_default_route_is_followed_and_loopback_only_by_name() {
        let facts = facts(vec![device(1, "lo"), device(2, "eth0"), device(3, "eth1")], &[3]);
        check(&facts, &[], &["eth1"], &[]);
        check(&facts, &["*"], &["eth0", "eth1"], &[]);
        check(&facts, &["lo"], &["lo"], &[]);
        check(&facts, &["l*"], &[], &[]);
    }

    #[test]
    fn stacked_devices_never_count_one_byte_twice() {
        let vlan = Device { carrier: Some(2), ..device(3, "eth0.5") };
        let port = Device { master: Some(5), ..device(4, "eth1") };
        let facts = facts(vec![device(2, "eth0"), vlan, port, device(5, "br0")], &[2, 3, 4, 5]);
        check(&facts, &[], &["eth0", "br0"], &["eth0.5", "eth1"]);
        check(&facts, &["eth0.5", "eth1"], &["eth0.5", "eth1"], &[]);
    }

    #[test]
    fn devices_that_stand_on_one_another_over_others_count_no_byte_twice() {
        let carried =
            |index, name, carrier| Device { carrier: Some(carrier), ..device(index, name) };
        let part = |device, master| Device { master: Some(master), ..device };
        // QinQ: two tags, and the device between them is not asked for.
        let qinq =
            facts(vec![device(2, "eth0"), carried(3, "eth0.5", 2), carried(4, "eth0.5.7", 3)], &[]);
        check(&qinq, &["eth0", "eth0.5.7"], &["eth0"], &["eth0.5.7"]);
        check(&qinq, &["*"], &["eth0"], &["eth0.5", "eth0.5.7"]);
        // A bridge whose port is a VLAN or a macvlan on a device.
        let port = part(carried(3, "eth0.5", 2), 4);
        let bridge = facts(vec![device(2, "eth0"), port, device(4, "br0")], &[]);
        check(&bridge, &["eth0", "br0"], &["eth0"], &["br0"]);
        check(&bridge, &["*"], &["eth0"], &["eth0.5", "br0"]);
        check(&bridge, &["eth0.5", "br0"], &["br0"], &["eth0.5"]);
        // The bridge goes, so its other port stays: what passes it passes nothing else.
        let mixed = facts(
            vec![
                device(2, "eth0"),
                part(carried(3, "mv1", 2), 4),
                device(4, "br0"),
                part(device(5, "eth1"), 4),
            ],
            &[],
        );
        check(&mixed, &["eth0", "br0", "eth1"], &["eth0", "eth1"], &["br0"]);
        // A VLAN on a bond, and a part of the bond.
        let bond = facts(
            vec![part(device(2, "eth0"), 3), device(3, "bond0"), carried(4, "bond0.5", 3)],
            &[],
        );
        check(&bond, &["eth0", "bond0.5"], &["eth0"], &["bond0.5"]);
        check(&bond, &["*"], &["bond0"], &["eth0", "bond0.5"]);
        // Two VLANs of one device, or two ports of one bridge, are apart.
        let apart =
            facts(vec![device(2, "eth0"), carried(3, "eth0.5", 2), carried(4, "eth0.6", 2)], &[]);
        check(&apart, &["eth0.*"], &["eth0.5", "eth0.6"], &[]);
    }

    #[test]
    fn a_vrf_stands_for_its_parts() {
        let vrf = Device { vrf: true, ..device(4, "red") };
        let part = |index, name| Device { master: Some(4), ..device(index, name) };
        let all = vec![part(2, "eth0"), part(3, "eth1"), vrf, device(5, "eth2")];
        // The route of the main table leads to the VRF, that of its own table to a part.
        check(&facts(all.clone(), &[2, 4]), &[], &["eth0", "eth1"], &["red"]);
        check(&facts(all.clone(), &[2]), &[], &["eth0"], &[]);
        check(&facts(all.clone(), &[]), &["red"], &["eth0", "eth1"], &["red"]);
        check(&facts(all, &[]), &["*"], &["eth0", "eth1", "eth2"], &["red"]);
        let bridge = Device { master: Some(4), ..device(3, "br0") };
        let port = Device { master: Some(3), ..device(2, "eth0") };
        let vrf = Device { vrf: true, ..device(4, "red") };
        check(&facts(vec![port, bridge, vrf], &[4]), &[], &["br0"], &["red"]);
    }

    #[test]
    fn a_gre_device_begins_with_ip_where_it_leads_to_one_place() {
        let of = |layer, data| {
            let mut message = LinkMessage::default();
            message.header.link_layer_type = layer;
            message.attributes.push(LinkAttribute::IfName("t0".to_owned()));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Data(data)]));
            super::device(&message).map(|device| device.link)
        };
        let four = |all| of(LinkLayerType::Ipgre, InfoData::GreTun(all));
        let six = |all| of(LinkLayerType::Ip6gre, InfoData::GreTun6(all));
        let (bare, ipgre, ip6gre) =
            (Some(LinkKind::Bare), Some(LinkKind::Other(778)), Some(LinkKind::Other(823)));
        assert_eq!(four(vec![InfoGre::Remote([10, 0, 0, 1].into())]), bare);
        assert_eq!(four(vec![InfoGre::Remote([0; 4].into()), InfoGre::CollectMetadata]), bare);
        assert_eq!(four(vec![InfoGre::Remote([0; 4].into())]), ipgre);
        assert_eq!(four(vec![InfoGre::Remote([239, 1, 1, 1].into())]), ipgre);
        assert_eq!(four(vec![]), ipgre);
        assert_eq!(six(vec![InfoGre6::Remote([1; 16].into())]), bare);
        assert_eq!(six(vec![InfoGre6::CollectMetadata]), bare);
        assert_eq!(six(vec![InfoGre6::Remote([0; 16].into())]), ip6gre);
    }

    #[test]
    fn a_number_without_a_device_is_no_device() {
        assert!(is_there(1), "loopback is the first in every network namespace");
        assert!(!is_there(2_000_000_000));
    }

    #[test]
    fn a_pattern_without_a_device_is_named() {
        let wanted = Wanted::new(&["eth*".to_owned(), "wg7".to_owned()]).unwrap();
        let choice = choose(&facts(vec![device(2, "eth0")], &[]), &wanted);
        assert_eq!(choice.unmatched, ["wg7"]);
    }
}
