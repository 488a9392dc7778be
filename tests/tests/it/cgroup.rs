//! The meter at a cgroup: it counts what the sockets of that cgroup sent and got, under the ports
//! that they have.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
};

use traffic_tests::{
    capture::Capture,
    cgroup::Cgroup,
    daemon::{Daemon, Site},
    device::{Device, veth},
    document::Traffic,
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
        assert_eq!(document.group(protocol), Traffic::default(), "{protocol}");
    }
}
