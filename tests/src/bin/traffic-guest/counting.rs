//! Exactness: what was counted is what was sent, byte for byte.

use std::net::{SocketAddr, UdpSocket};

use traffic_tests::{
    craft,
    daemon::Site,
    device::{Device, Tun},
    document::{Document, Traffic},
    netns::NetNs,
    wait,
};

use crate::{
    load::{self, Datagrams},
    pair::{PORT, Pair, WATCHED, assert_counted},
};

const MTU: usize = 1500;

/// Payloads: the empty one, those around the largest that is not cut, and some that are.
const SIZES: [usize; 9] = [0, 1, 100, 1451, 1452, 1471, 1472, 4000, 20_000];

/// At a cgroup only what a socket sends and gets is seen, before it is cut and after it is whole.
fn datagrams(hook: &str) -> Datagrams {
    if hook == "cgroup" { Datagrams::Whole } else { Datagrams::Cut(MTU) }
}

/// Counts on both ends while `load` runs for IPv4 and IPv6.
fn both_families(hook: &str, lanes: [&str; 2], load: impl Fn(&Pair, bool) -> Traffic) {
    let pair = Pair::new();
    let (here, there) = (Site::new(), Site::new());
    let server = pair.count(&here, hook, &[]);
    // At a cgroup one would see the other's host as well.
    let client = (hook != "cgroup").then(|| {
        let args = ["--ports", "1", "--iface", "eth0", "--meter", hook];
        let mut client = there.start(&pair.client.ns, &args);
        client.counts_on(&["eth0"]);
        client
    });
    let sent = [load(&pair, false), load(&pair, true)];
    let seen = server.stop();
    assert_counted(&seen, hook, &[(lanes[0], sent[0]), (lanes[1], sent[1])]);
    if let Some(client) = client {
        let seen = client.stop().skipped("unwatched");
        assert_eq!(seen, (sent[0] + sent[1]).turned(), "what the client's end has seen");
    }
}

/// Datagrams, whole and in fragments.
pub(crate) fn udp(hook: &str) {
    both_families(hook, ["udp4", "udp6"], |pair, ipv6| {
        load::udp((&pair.server, &pair.client), ipv6, &SIZES, datagrams(hook))
    });
}

/// Datagrams that travel as one buffer of many.
pub(crate) fn udp_segments(hook: &str) {
    both_families(hook, ["udp4", "udp6"], |pair, ipv6| {
        load::udp_segments((&pair.server, &pair.client), ipv6, 1000, 20)
    });
}

/// Connections: bulk both ways, where buffers of many segments travel, and one byte each.
fn connections(pair: &Pair, ipv6: bool) -> Traffic {
    let ends = (&pair.server, &pair.client);
    load::tcp(ends, ipv6, 1_000_003, 2_000_003) + load::tcp(ends, ipv6, 1, 1)
}

/// How many those are.
const CONNECTIONS: u64 = 2;

/// Connections, at a device.
pub(crate) fn tcp(hook: &str) {
    both_families(hook, ["tcp4", "tcp6"], connections);
}

/// Connections, at a cgroup. Older kernels do not show it the server's first segment of an IPv6
/// connection, which they send for a socket that is not there yet: says how many were not seen, and
/// everything else is exact.
pub(crate) fn tcp_at_a_cgroup(hook: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let daemon = pair.count(&site, hook, &[]);
    let sent = [false, true].map(|ipv6| connections(&pair, ipv6));
    let seen = daemon.stop();
    // An IPv6 header, a TCP header and 20 bytes of options.
    let first = |count| Traffic::output(count * (40 + 40), count);
    let unseen = [0, CONNECTIONS]
        .into_iter()
        .find(|count| seen.lane(WATCHED, "tcp6") + first(*count) == sent[1])
        .unwrap_or_else(|| panic!("tcp6 is not {:?} in {}", sent[1], seen.0));
    println!("info: unseen={unseen}");
    let seen6 = seen.lane(WATCHED, "tcp6");
    assert_counted(&seen, hook, &[("tcp4", sent[0]), ("tcp6", seen6)]);
}

/// A VLAN: counted on its own device, on the one below, and once where both are asked for.
pub(crate) fn vlan(hook: &str) {
    let pair = Pair::new();
    let tagged = |device: &Device, host: u8| {
        device.ns.ip("link add link eth0 name eth0.7 type vlan id 7");
        let tagged = Device {
            name: "eth0.7".to_owned(),
            v4: [10, 0, 7, host].into(),
            v6: [0xfd00, 7, 0, 0, 0, 0, 0, u16::from(host)].into(),
            ..device.clone()
        };
        tagged.up();
        tagged
    };
    let (server, client) = (tagged(&pair.server, 1), tagged(&pair.client, 2));
    server.address(&client);
    client.address(&server);
    for (asked, counted, header) in
        [(&["eth0.7"][..], "eth0.7", 18), (&["eth0"], "eth0", 14), (&["eth0*"], "eth0", 14)]
    {
        let site = Site::new();
        let mut args = vec!["--ports", WATCHED, "--meter", hook];
        asked.iter().for_each(|device| args.extend(["--iface", device]));
        let mut daemon = site.start(&pair.server.ns, &args);
        daemon.counts_on(&[counted]);
        let sent = [false, true]
            .map(|ipv6| load::udp((&server, &client), ipv6, &SIZES, Datagrams::Cut(MTU)));
        let stream = load::tcp((&server, &client), false, 300_001, 500_001);
        let seen = daemon.stop();
        assert_eq!(seen.0["devices"][counted]["link_header"], header);
        assert_counted(&seen, hook, &[("udp4", sent[0]), ("udp6", sent[1]), ("tcp4", stream)]);
    }
}

/// A device that is a part of a VRF, to which a default route leads: what enters passes the part alone.
pub(crate) fn vrf() {
    const COUNT: u64 = 100;
    let pair = Pair::new();
    let (server, client) = (&pair.server, &pair.client);
    server.ns.ip(&format!(
        "link add red type vrf table 10\nlink set red up\nlink set eth0 master red\n\
         route add default via {} dev eth0 table 10\nroute add default dev red\n",
        client.ip(false)
    ));
    for asked in [&[][..], &["red"], &["*"]] {
        let site = Site::new();
        let mut args = vec!["--ports", WATCHED];
        asked.iter().for_each(|device| args.extend(["--iface", device]));
        let mut daemon = site.start(&server.ns, &args);
        daemon.counts_on(&["eth0"]);
        let from = SocketAddr::new(client.ip(false), 0);
        let socket = client.ns.run(|| UdpSocket::bind(from)).expect("bind a UDP socket");
        for _ in 0..COUNT {
            let sent = socket.send_to(&[1; 172], (server.ip(false), PORT)).expect("send");
            assert_eq!(sent, 172);
        }
        let wanted = Traffic::input(COUNT * (20 + 8 + 172), COUNT);
        daemon.wait_for("all datagrams", |document| {
            (document.lane(WATCHED, "udp4").input_packets >= COUNT).then_some(())
        });
        let seen = daemon.stop();
        assert_eq!(seen.lane(WATCHED, "udp4"), wanted, "{asked:?}");
        assert_eq!(seen.text("coverage"), "complete");
    }
}

/// A device without a link header.
pub(crate) fn tun(hook: &str) {
    let ns = NetNs::new();
    let tun = Tun::new(&ns, "tun0", 9, false);
    let site = Site::new();
    let args = ["--ports", WATCHED, "--iface", "tun0", "--meter", hook];
    let mut daemon = site.start(&ns, &args);
    daemon.counts_on(&["tun0"]);
    let sent = [false, true].map(|ipv6| over_tun(&tun, ipv6));
    let seen: Document = daemon.stop();
    assert_eq!(seen.0["devices"]["tun0"]["link_header"], 0);
    assert_counted(&seen, hook, &[("udp4", sent[0]), ("udp6", sent[1])]);
}

fn over_tun(tun: &Tun, ipv6: bool) -> Traffic {
    let here = SocketAddr::new(tun.device.ip(ipv6), PORT);
    let there = SocketAddr::new(tun.peer(ipv6), 40_000);
    let socket = tun.device.ns.run(|| UdpSocket::bind(here)).expect("bind a UDP socket");
    socket.set_read_timeout(Some(wait::DEADLINE)).expect("set a timeout");
    let mut sum = Traffic::default();
    for size in [0, 1, 64, 1400] {
        let packet = craft::udp(there, here, &vec![0x55; size]);
        tun.put(&packet);
        let (length, from) = socket.recv_from(&mut [0; 2000]).expect("receive a datagram");
        assert_eq!((length, from), (size, there), "what came out of the tun device");
        socket.send_to(&vec![0xaa; size + 1], there).expect("answer a datagram");
        let answer = answer(tun, ipv6);
        assert_eq!(answer.len(), packet.len() + 1, "the answer's packet");
        sum += Traffic::input(packet.len() as u64, 1) + Traffic::output(answer.len() as u64, 1);
    }
    sum
}

/// The next UDP packet that leaves; the kernel sends reports of multicast groups as well.
fn answer(tun: &Tun, ipv6: bool) -> Vec<u8> {
    let (version, place) = if ipv6 { (6, 6) } else { (4, 9) };
    loop {
        let (packet, _) = tun.take();
        if packet[0] >> 4 == version && packet[place] == UDP {
            return packet;
        }
    }
}

const UDP: u8 = 17;
