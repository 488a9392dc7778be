//! Loads of which it is known beforehand what they are on the wire: datagrams of every size, with all
//! their fragments, and the packets of the corpus put onto a device as they are.

use std::collections::BTreeMap;

use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use traffic_ebpf::{abi::skip, packet::Link};
use traffic_tests::{
    corpus::{self, Case, Charge, Position, Side},
    craft,
    daemon::Site,
    device::{Segments, connect, pair, veth},
    document::Traffic,
    leaks,
    load::{self, Injector},
    need,
    netns::NetNs,
};

use super::agrees_with_the_device;

/// Bytes and packets of one UDP datagram on a wire with an MTU of 1500.
fn datagram(ipv6: bool, payload: u64) -> (u64, u64) {
    let whole = 8 + payload;
    // Fragments carry a multiple of 8 bytes; those of IPv6 have a header of their own.
    let (header, fragment_header, most) = if ipv6 { (40, 8, 1448) } else { (20, 0, 1480) };
    if header + whole <= 1500 {
        return (header + whole, 1);
    }
    let fragments = whole.div_ceil(most);
    (whole + fragments * (header + fragment_header), fragments)
}

/// The fragments of a datagram keep their order on the way only if nothing moves the sender to
/// another CPU between them.
fn stay_on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("this CPU")).expect("a number of a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("stay on a CPU");
}

#[test]
fn a_datagram_of_any_size_counts_with_all_its_fragments_both_ways() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    const SIZES: [usize; 19] = [
        0, 1, 17, 18, 19, 1451, 1452, 1453, 1471, 1472, 1473, 2888, 2889, 2952, 2953, 8192, 40_000,
        65_506, 65_507,
    ];
    stay_on_one_cpu();
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
    here.offloads(false);
    there.offloads(false);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "eth0", "--ports", "5000/udp=dns"]);
    daemon.counts_on(&["eth0"]);
    connect(&here, &there);

    let mut wanted = BTreeMap::new();
    for (ipv6, lane) in [(false, "udp4"), (true, "udp6")] {
        let server = load::udp(&here, ipv6, 5000);
        let client = load::udp(&there, ipv6, 40_000);
        let stranger = load::udp(&here, ipv6, 5001);
        for size in SIZES {
            load::datagram(&client, &server, size);
            load::datagram(&server, &client, size);
            let (bytes, packets) = datagram(ipv6, size as u64);
            let both = Traffic::input(bytes, packets) + Traffic::output(bytes, packets);
            *wanted.entry(lane).or_default() += both;
            // The fragments of what nobody watches are unwatched, not fragments without a first.
            load::datagram(&client, &stranger, size);
            *wanted.entry("unwatched").or_default() += Traffic::input(bytes, packets);
        }
    }
    agrees_with_the_device(&mut daemon, &here);
    let document = daemon.stop();
    for lane in ["udp4", "udp6"] {
        assert_eq!(document.lane("5000", lane), wanted[lane], "{lane}");
    }
    assert_eq!(document.skipped("unwatched"), wanted["unwatched"]);
    assert_eq!(document.skipped("fragment"), Traffic::default());
    assert_eq!(document.skipped("malformed"), Traffic::default());
    leaks::nothing(&host, &site.pins);
}

#[test]
fn a_fragment_that_overtakes_the_first_one_is_counted_as_what_it_is() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "eth0", "--ports", "5000"]);
    daemon.counts_on(&["eth0"]);
    let server = load::udp(&here, false, 5000);

    let from = (there.v4, 40_000).into();
    let to = (here.v4, 5000).into();
    let whole = craft::udp(from, to, &[0x5a; 3000]);
    let injector = Injector::new(&there);
    let send = |offset, bytes| {
        let packet = craft::fragment(&whole, offset, bytes, 77);
        injector.send(&craft::ethernet(there.mac, here.mac, &packet));
    };
    // 3,008 bytes: the second third first, then in order, the last third twice.
    send(1000, 1000);
    send(0, 1000);
    send(2000, 1008);
    send(2000, 1008);
    let length = server.recv(&mut [0; 4000]).expect("the whole datagram");
    assert_eq!(length, 3000);

    let document = daemon.stop();
    assert_eq!(document.lane("5000", "udp4"), Traffic::input(1020 + 2 * 1028, 3));
    assert_eq!(document.skipped("fragment"), Traffic::input(1020, 1));
}

/// What the kernel itself does to these before any hook sees them, or refuses to send at all.
const NOT_AS_THEY_ARE: [&str; 4] = [
    // A frame that ends with its header is refused by packet sockets.
    "ethernet-only",
    // Dropped where the device takes the tag off.
    "vlan-cut",
    // The device takes one of three tags off, and two are followed.
    "v4-vlan-thrice",
    // Longer than any device carries.
    "v6-jumbogram",
];

fn is_sent(case: &Case) -> bool {
    case.link == Link::Ethernet
        && (case.offload.segments, case.offload.size) == (0, 0)
        && !NOT_AS_THEY_ARE.contains(&case.name.as_str())
}

#[test]
fn every_packet_of_the_corpus_counts_on_a_device_as_it_should() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    // No address and no IPv6: nothing is sent but what the test sends.
    let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
    let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
    here.mtu(65_535);
    there.mtu(65_535);
    let site = Site::new();
    let ports = "1,53,443,8443/tcp,65535";
    let mut daemon = site.start(&host, &["--iface", "eth0", "--ports", ports]);
    daemon.counts_on(&["eth0"]);
    here.own_queue();
    there.own_queue();
    here.up();
    there.up();
    here.carries();
    there.carries();

    let mut cases: Vec<Case> = corpus::all().into_iter().filter(is_sent).collect();
    assert!(cases.len() > 100, "only {} packets", cases.len());
    // Each answer is that of the packet alone: no later fragment may find a first one.
    cases.sort_by_key(|case| case.position != Position::Later);
    let (inward, outward) = (Injector::new(&there), Injector::new(&here));
    let mut wanted: BTreeMap<String, Traffic> = BTreeMap::new();
    for case in &cases {
        let (injector, traffic) = match case.side {
            Side::Input => (&inward, Traffic::input(case.bytes, case.packets)),
            Side::Output => (&outward, Traffic::output(case.bytes, case.packets)),
        };
        injector.send(&case.packet);
        let key = match case.charge {
            Charge::Port(port) => port.to_string(),
            Charge::Skipped(reason) => skip::NAMES[reason as usize].to_owned(),
        };
        *wanted.entry(key).or_default() += traffic;
    }

    agrees_with_the_device(&mut daemon, &here);
    let document = daemon.stop();
    let mut found: BTreeMap<String, Traffic> = BTreeMap::new();
    for port in ["1", "53", "443", "8443", "65535"] {
        found.insert(port.to_owned(), document.group(port));
    }
    for reason in skip::NAMES {
        found.insert(reason.to_owned(), document.skipped(reason));
    }
    found.retain(|_, traffic| *traffic != Traffic::default());
    assert_eq!(found, wanted);
    leaks::nothing(&host, &site.pins);
}

#[test]
fn segments_that_nobody_has_counted_yet_are_derived() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "eth0", "--ports", "443"]);
    daemon.counts_on(&["eth0"]);
    // A packet socket tells the kernel the size of segments, but never how many there are.
    let mut wanted = [Traffic::default(); 2];
    for (ipv6, header) in [(false, 40u16), (true, 60)] {
        let address = |device: &traffic_tests::device::Device, port| (device.ip(ipv6), port).into();
        let packet = craft::tcp(address(&here, 443), address(&there, 40_000), &[1; 2501], true);
        let segments =
            Segments { size: 500, ipv6, transport: 14 + header - 20, headers: 14 + header };
        let injector = Injector::with_offload(&here);
        injector.send_segments(&craft::ethernet(here.mac, there.mac, &packet), segments);
        wanted[usize::from(ipv6)] = Traffic::output(2501 + 6 * u64::from(header), 6);
    }
    let document = daemon.stop();
    // The other side answers that there is no such connection: one reset of each family.
    assert_eq!(document.lane("443", "tcp4"), wanted[0] + Traffic::input(40, 1));
    assert_eq!(document.lane("443", "tcp6"), wanted[1] + Traffic::input(60, 1));
}
