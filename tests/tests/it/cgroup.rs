//! The meter at a cgroup: it counts what the sockets of that cgroup sent and got, under the ports
//! that they have.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use traffic_tests::{
    capture::Capture,
    cgroup::Cgroup,
    daemon::{Daemon, Site},
    device::{Device, veth},
    document::{Document, Traffic},
    load, need,
    netns::NetNs,
};

struct Host {
    cgroup: Cgroup,
    here: Device,
    there: Device,
}

impl Host {
    fn new() -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        Self { cgroup: Cgroup::new(), here, there }
    }

    fn count(&self, site: &Site, args: &[&str]) -> Daemon {
        let path = self.cgroup.path().display().to_string();
        let args = [&["--meter", "cgroup", "--cgroup", &path], args].concat();
        let mut daemon = site.start(&self.here.ns, &args);
        daemon.wait_for("the meter", |document| (document.text("meter") == "cgroup").then_some(()));
        daemon
    }

    /// A socket of this host that belongs to the cgroup.
    fn server(&self, ipv6: bool, port: u16) -> UdpSocket {
        self.cgroup.run(|| load::udp(&self.here, ipv6, port))
    }
}

fn both_ways(bytes: u64, packets: u64) -> Traffic {
    Traffic::input(bytes, packets) + Traffic::output(bytes, packets)
}

#[test]
fn sockets_of_the_cgroup_are_counted_and_no_others() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"));
    let host = Host::new();
    let site = Site::new();
    let daemon = host.count(&site, &["--ports", "5000/udp,5001/udp"]);
    for ipv6 in [false, true] {
        let client = load::udp(&host.there, ipv6, 40_000);
        let inside = host.server(ipv6, 5000);
        // Its port is watched, but its socket is of another cgroup.
        let outside = load::udp(&host.here, ipv6, 5001);
        let unwatched = host.server(ipv6, 5002);
        for size in [0, 1, 100, 1000, 1452] {
            for server in [&inside, &outside, &unwatched] {
                load::datagram(&client, server, size);
                load::datagram(server, &client, size);
            }
        }
    }
    let document = daemon.stop();
    assert_eq!(document.lane("5000", "udp4"), both_ways(2553 + 5 * 28, 5));
    assert_eq!(document.lane("5000", "udp6"), both_ways(2553 + 5 * 48, 5));
    assert_eq!(document.group("5001"), Traffic::default());
    assert_eq!(document.skipped("unwatched"), both_ways(2 * 2553 + 5 * (28 + 48), 10));
    assert_eq!(document.everything(), document.total() + document.skipped("unwatched"));
    // Programs and their links end with the daemon: nothing counts any more.
    assert!(!site.pins.exists());
}

#[test]
fn a_stream_counts_in_segments_though_sockets_see_large_buffers() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("ethtool"));
    let host = Host::new();
    let router = NetNs::new();
    router.forward();
    // The wire behind the router carries segments both ways, whatever the host's own device does.
    let (near, far) = veth((&host.here.ns, "eth1"), (&router, "near"), 2);
    let (wire, client) = veth((&router, "wire"), (&host.there.ns, "eth1"), 3);
    near.default_route(&far);
    client.default_route(&wire);
    near.offloads(true);
    client.offloads(false);
    wire.offloads(false);
    let site = Site::new();
    let daemon = host.count(&site, &["--ports", "443,444"]);
    let capture = Capture::start(&wire);
    for ipv6 in [false, true] {
        // The host receives a stream, and sends one.
        let inside = |port| host.cgroup.run(|| load::tcp_socket(&near, ipv6, port));
        let outside = |port| load::tcp_socket(&client, ipv6, port);
        load::transfer(&outside(443), &inside(443), 3_000_000);
        load::transfer(&inside(444), &outside(444), 3_000_000);
    }
    load::settled(&[&near.ns, &client.ns]);
    let captured = capture.stop();
    let document = daemon.stop();
    for (ipv6, lane) in [(false, "tcp4"), (true, "tcp6")] {
        let to_host = |port| {
            let matches = |outgoing| {
                captured.sum(|flow| {
                    (flow.outgoing, flow.ipv6, flow.destination) == (outgoing, ipv6, port)
                })
            };
            let (input, output) = (matches(false), matches(true));
            Traffic::input(input.bytes, input.packets)
                + Traffic::output(output.bytes, output.packets)
        };
        assert_eq!(document.lane("443", lane), to_host(443), "{lane}, received");
        assert_eq!(document.lane("444", lane), to_host(444), "{lane}, sent");
    }
}

#[test]
fn behind_a_redirect_the_cgroup_counts_the_listening_port_and_tc_the_port_on_the_wire() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"), Tool("nft"));
    let host = Host::new();
    for family in ["ip", "ip6"] {
        host.here.ns.nft(&format!(
            "table {family} hop {{\n chain hop {{\n type nat hook prerouting priority -100;\n \
             udp dport 20000-20099 redirect to :4433\n }}\n}}\n"
        ));
    }
    let ports = "4433/udp,20000-20099/udp=hop";
    let exchange = || {
        for ipv6 in [false, true] {
            let server = host.server(ipv6, 4433);
            for port in [20_000, 20_042, 20_099] {
                let client = load::udp(&host.there, ipv6, 0);
                let hop = SocketAddr::from((host.here.ip(ipv6), port));
                load::datagram_to(&client, &server, hop, 1000);
                // The answer leaves from the listening port and arrives from the hop port.
                let address = client.local_addr().expect("the address of a socket");
                server.send_to(&[1; 500], (host.there.ip(ipv6), address.port())).expect("answer");
                let (length, from) = client.recv_from(&mut [0; 2000]).expect("the answer");
                assert_eq!((length, from), (500, hop));
            }
        }
    };
    let (v4, v6) = (
        Traffic::input(3 * 1028, 3) + Traffic::output(3 * 528, 3),
        Traffic::input(3 * 1048, 3) + Traffic::output(3 * 548, 3),
    );

    let site = Site::new();
    let daemon = host.count(&site, &["--ports", ports]);
    exchange();
    let document = daemon.stop();
    assert_eq!(document.group("20000-20099"), Traffic::default(), "{}", document.0);
    assert_eq!(document.lane("4433", "udp4"), v4);
    assert_eq!(document.lane("4433", "udp6"), v6);

    let args = ["--iface", "eth0", "--ports", ports];
    let mut daemon = site.start(&host.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    exchange();
    let document = daemon.stop();
    assert_eq!(document.group("4433"), Traffic::default(), "{}", document.0);
    assert_eq!(document.lane("20000-20099", "udp4"), v4);
    assert_eq!(document.lane("20000-20099", "udp6"), v6);
}

#[test]
fn traffic_of_the_host_with_itself_is_in_no_group() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"));
    let host = Host::new();
    let site = Site::new();
    let daemon = host.count(&site, &["--ports", "5000,40000"]);
    let address = |port| SocketAddr::from((IpAddr::from(Ipv4Addr::LOCALHOST), port));
    let (server, client) = host.cgroup.run(|| {
        (load::udp_at(&host.here.ns, address(5000)), load::udp_at(&host.here.ns, address(40_000)))
    });
    for _ in 0..10 {
        load::datagram(&client, &server, 72);
    }
    // To the host's own address is by way of loopback as well.
    let (server, client) = (host.server(false, 5000), host.server(false, 40_000));
    for _ in 0..10 {
        load::datagram(&client, &server, 72);
    }
    let document = daemon.stop();
    assert_eq!(document.skipped("loopback"), both_ways(2000, 20));
    assert_eq!(document.total(), Traffic::default());
    assert_eq!(document.skipped("unwatched"), Traffic::default());
}

/// Whoever looks at packets with a raw socket gets a copy of each, past the same programs.
#[test]
fn a_copy_for_a_raw_socket_counts_nowhere_and_what_one_sends_under_the_port_that_it_says() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"));
    let host = Host::new();
    let site = Site::new();
    let daemon = host.count(&site, &["--ports", "1,6,17,5000,5001,6000/udp"]);
    let raw = |ipv6, protocol: i32| {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let make = || Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)));
        host.cgroup.run(|| host.here.ns.run(make)).expect("a raw socket")
    };
    for ipv6 in [false, true] {
        let _copies =
            [(); 2].map(|()| [raw(ipv6, libc::IPPROTO_UDP), raw(ipv6, libc::IPPROTO_TCP)]);
        let client = load::udp(&host.there, ipv6, 40_000);
        // One that really has the number of the protocol.
        for (port, count) in [(5000, 20), (17, 3)] {
            let server = host.server(ipv6, port);
            for _ in 0..count {
                load::datagram(&client, &server, 72);
                load::datagram(&server, &client, 72);
            }
        }
        let inside = host.cgroup.run(|| load::tcp_socket(&host.here, ipv6, 5001));
        load::transfer(&load::tcp_socket(&host.there, ipv6, 5001), &inside, 100_000);
    }
    // UDP from port 6000, sent with a header of its own by a socket of another protocol.
    let spoof = raw(false, libc::IPPROTO_ICMP);
    spoof.set_header_included_v4(true).expect("headers of our own");
    let mut packet = [0_u8; 32];
    packet[0] = 0x45;
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&host.here.v4.octets());
    packet[16..20].copy_from_slice(&host.there.v4.octets());
    packet[20..26].copy_from_slice(&[0x17, 0x70, 0, 9, 0, 12]);
    let to = SocketAddr::from((host.there.v4, 0));
    assert_eq!(spoof.send_to(&packet, &to.into()).expect("send a packet"), packet.len());

    let document = daemon.stop();
    for (lane, whole) in [("udp4", 100), ("udp6", 120)] {
        assert_eq!(document.lane("5000", lane), both_ways(20 * whole, 20), "{lane}");
        assert_eq!(document.lane("17", lane), both_ways(3 * whole, 3), "{lane}");
    }
    for (lane, headers) in [("tcp4", 52), ("tcp6", 72)] {
        let Traffic { input_bytes, input_packets, .. } = document.lane("5001", lane);
        // Headers with time stamps; those of the first packet are longer.
        let least = 100_000 + input_packets * headers;
        assert!((least..least + 100).contains(&input_bytes), "{lane}: {}", document.0);
    }
    assert_eq!(document.lane("6000", "udp4"), Traffic::output(32, 1));
    for protocol in ["1", "6"] {
        assert_eq!(document.group(protocol), Traffic::default(), "{protocol}");
    }
    assert_eq!(document.skipped("unwatched"), Traffic::default());
}

/// The kernel hands what a host sends to a group that it is a member of back to it, as if its device had
/// received it, but without a link header.
#[test]
fn what_the_host_sends_to_its_own_group_is_received_by_no_device() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc", "cgroup"] {
        let host = Host::new();
        let site = Site::new();
        let mut daemon = if meter == "cgroup" {
            host.count(&site, &["--ports", "5000/udp,40000/udp"])
        } else {
            let ports = ["--ports", "5000/udp,40000/udp", "--iface", "eth0", "--meter", meter];
            let mut daemon = site.start(&host.here.ns, &ports);
            daemon.counts_on(&["eth0"]);
            daemon
        };
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5000));
        let member = host.cgroup.run(|| load::udp_at(&host.here.ns, any));
        member.join_multicast_v4(&group, &host.here.v4).expect("join a group");
        let sender = host.server(false, 40_000);
        SockRef::from(&sender).set_multicast_if_v4(&host.here.v4).expect("choose the device");
        let before = daemon.fresh();
        for _ in 0..10 {
            load::datagram_to(&sender, &member, SocketAddr::from((group, 5000)), 72);
        }
        let document = daemon.stop();
        let own = Traffic::input(1000, 10);
        assert_eq!(document.skipped("loopback"), own, "{meter}: {}", document.0);
        assert_eq!(document.group("5000"), Traffic::default(), "{meter}");
        let others = |document: &Document| document.skipped("other").input_packets;
        assert_eq!(others(&document), others(&before), "{meter}");
        assert_eq!(document.group("40000"), Traffic::output(1000, 10), "{meter}");
    }
}

#[test]
fn a_reset_for_nobody_counts_under_the_port_that_it_says() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    let site = Site::new();
    // The socket with which the kernel answers is in the root of all cgroups.
    let args = ["--meter", "cgroup", "--ports", "45001,6,17,255"];
    let mut daemon = site.start(&host, &args);
    daemon.wait_for("the meter", |document| (document.text("meter") == "cgroup").then_some(()));
    let closed = SocketAddr::new(IpAddr::V4(here.v4), 45_001);
    for _ in 0..5 {
        let refused = there.ns.run(|| TcpStream::connect(closed)).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    }
    let document = daemon.stop();
    assert_eq!(document.group("45001"), Traffic::output(5 * 40, 5));
    for protocol in ["6", "17", "255"] {
        // Of UDP there may be some that other tests send.
        assert_eq!(document.lane(protocol, "tcp4"), Traffic::default(), "{protocol}");
    }
}
