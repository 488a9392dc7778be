//! Which devices are counted while they come, go, change their names and stand on one another.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use traffic_tests::{
    daemon::{Daemon, Site},
    device::{Device, connect, pair, veth},
    document::Traffic,
    leaks,
    load::{self, DATAGRAM, Sender},
    need,
    netns::NetNs,
};

/// Payload of the datagrams, and what they are with their headers.
const PAYLOAD: usize = 72;
const WHOLE: u64 = 100;

/// The promise: packets that are sent so long after a device has appeared are counted.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Another program may have both processors for a while, so the promise is looked at more than once.
const LEAST_TRIALS: usize = 3;
const TRIALS: u8 = 10;

/// A client on the other side of a device, and the server on it.
struct Peers {
    server: UdpSocket,
    client: UdpSocket,
}

impl Peers {
    fn new(here: &Device, there: &Device, port: u16) -> Self {
        Self { server: load::udp(here, false, port), client: load::udp(there, false, 0) }
    }

    /// So many datagrams in, and as many out.
    fn exchange(&self, count: u64) {
        for _ in 0..count {
            load::datagram(&self.client, &self.server, PAYLOAD);
            load::datagram(&self.server, &self.client, PAYLOAD);
        }
    }
}

fn both_ways(count: u64) -> Traffic {
    Traffic::input(WHOLE * count, count) + Traffic::output(WHOLE * count, count)
}

/// How long after `event` the first counted one of these datagrams was sent, if all that came after it
/// were counted.
fn delay(event: Instant, times: &[Instant], counted: Traffic) -> Duration {
    let counted = usize::try_from(counted.input_packets).expect("a number of packets");
    assert!(counted > 0 && counted <= times.len(), "{counted} of {}", times.len());
    times[times.len() - counted].saturating_duration_since(event)
}

/// A trial of how soon something is counted.
struct Trial {
    /// Where it is to be counted.
    here: Device,
    /// Where datagrams come from, before and after the event.
    there: Device,
    /// What happens, and when.
    event: Box<dyn Fn() -> Instant>,
}

/// Asserts that a device counts at once after the event of most trials, of which there are more while it
/// stands otherwise, because others use the machine as well; and then every packet. Trials have devices and
/// networks of their own, and the ports of [`ports_of_trials`].
fn counts_at_once(daemon: &mut Daemon, trial: impl Fn(u8) -> Trial) {
    let mut delays = Vec::new();
    for n in 1..=TRIALS {
        let Trial { here, there, event } = trial(n);
        let port = 5000 + u16::from(n);
        let to = (here.v4.into(), port);
        let sender = Sender::start_to(&there, to);
        let began = event();
        daemon.wait_for("the new device", |document| {
            document.devices().contains(&here.name.as_str()).then_some(())
        });
        sender.goes_on(200);
        let times = sender.stop();
        let key = port.to_string();
        let counted = daemon.fresh().group(&key);
        assert_eq!(counted.input_bytes, counted.input_packets * DATAGRAM);
        delays.push(delay(began, &times, counted));

        let sender = Sender::start_to(&there, to);
        sender.goes_on(200);
        let sent = sender.stop().len() as u64;
        let more = daemon.fresh().group(&key) - counted;
        assert_eq!(more, Traffic::input(sent * DATAGRAM, sent));
        let at_once = delays.iter().filter(|delay| **delay <= AT_ONCE).count();
        if delays.len() >= LEAST_TRIALS && 2 * at_once > delays.len() {
            return;
        }
    }
    panic!("not within {AT_ONCE:?} most of the time: {delays:?}");
}

fn ports_of_trials() -> String {
    let ports: Vec<String> = (1..=u16::from(TRIALS)).map(|n| format!("{}/udp", 5000 + n)).collect();
    ports.join(",")
}

#[test]
fn a_default_route_is_followed_to_another_device_at_once() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (first, peer) = veth((&host, "wan0"), (&other, "wan0"), 100);
    first.default_route(&peer);
    let site = Site::new();
    let args = ["--interval", "10ms", "--ports", &ports_of_trials()];
    let mut daemon = site.start(&host, &args);
    daemon.counts_on(&["wan0"]);
    counts_at_once(&mut daemon, |n| {
        let name = format!("wan{n}");
        let (here, there) = veth((&host, &name), (&other, &name), n);
        let (from, by) = (here.clone(), there.clone());
        let event = move || {
            let now = Instant::now();
            from.default_route(&by);
            now
        };
        Trial { here, there, event: Box::new(event) }
    });
    // The one before has no default route any more.
    assert_eq!(daemon.fresh().devices().len(), 1);
    daemon.stop();
    leaks::nothing(&host, &site.pins);
}

#[test]
fn a_device_that_appears_counts_at_once() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other, elsewhere) = (NetNs::new(), NetNs::new(), NetNs::new());
    let _first = veth((&host, "wan0"), (&other, "wan0"), 100);
    let site = Site::new();
    let args = ["--interval", "10ms", "--iface", "wan*", "--ports", &ports_of_trials()];
    let mut daemon = site.start(&host, &args);
    daemon.counts_on(&["wan0"]);
    counts_at_once(&mut daemon, |n| {
        let name = format!("wan{n}");
        let (mut here, there) = pair((&elsewhere, &name), (&other, &name), n);
        here.ns = host.clone();
        there.up();
        there.address(&here);
        let (appears, from) = (here.clone(), elsewhere.clone());
        let event = move || {
            let (name, address) = (&appears.name, appears.v4);
            from.ip(&format!("link set {name} netns {}", appears.ns.path()));
            let now = Instant::now();
            appears.ns.ip(&format!("link set {name} up\naddress add {address}/24 dev {name}"));
            now
        };
        Trial { here, there, event: Box::new(event) }
    });
    daemon.stop();
    leaks::nothing(&host, &site.pins);
}

#[test]
fn a_device_that_goes_away_keeps_its_numbers_and_its_successor_adds_to_them() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (host, other) = (NetNs::new(), NetNs::new());
        let site = Site::new();
        let mut daemon = site.start(&host, &["--meter", meter, "--ports", "5000"]);
        daemon.counts_on(&[]);
        for round in 1..=3 {
            let (here, there) = veth((&host, "wan"), (&other, "wan"), 1);
            here.default_route(&there);
            daemon.counts_on(&["wan"]);
            Peers::new(&here, &there, 5000).exchange(10);
            assert_eq!(daemon.fresh().group("5000"), both_ways(10 * round));
            host.ip("link del wan");
            daemon.counts_on(&[]);
            assert_eq!(daemon.fresh().group("5000"), both_ways(10 * round));
        }
        let document = daemon.stop();
        assert_eq!(document.group("5000"), both_ways(30));
        assert_eq!(document.text("coverage"), "complete");
        leaks::nothing(&host, &site.pins);
    }
}

#[test]
fn two_devices_with_default_routes_are_counted_at_once_and_loopback_is_not() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (a, peer_a) = veth((&host, "wan0"), (&other, "wan0"), 1);
    let (b, peer_b) = veth((&host, "wan1"), (&other, "wan1"), 2);
    let (c, peer_c) = veth((&host, "lan0"), (&other, "lan0"), 3);
    // One for each family, as behind a tunnel for IPv6.
    host.ip(&format!("route add default via {} dev wan0", peer_a.v4));
    host.ip(&format!("route add ::/0 via {} dev wan1", peer_b.v6));
    let site = Site::new();
    let mut daemon = site.start(&host, &["--ports", "5000"]);
    daemon.counts_on(&["wan0", "wan1"]);
    for (here, there) in [(&a, &peer_a), (&b, &peer_b), (&c, &peer_c)] {
        Peers::new(here, there, 5000).exchange(10);
    }
    let local = load::udp_at(&host, (Ipv4Addr::LOCALHOST, 5000).into());
    load::datagram(&local, &local, PAYLOAD);
    assert_eq!(daemon.stop().group("5000"), both_ways(20));

    // Both halves of a default route, as clients of a VPN set them.
    host.ip("route add 0.0.0.0/1 dev lan0\nroute add 128.0.0.0/1 dev lan0");
    let mut daemon = site.start(&host, &["--ports", "5000"]);
    daemon.counts_on(&["lan0", "wan0", "wan1"]);
    Peers::new(&c, &peer_c, 5000).exchange(10);
    assert_eq!(daemon.stop().group("5000"), both_ways(10));

    // Loopback only by its own name: each of its packets leaves and enters.
    let mut daemon = site.start(&host, &["--iface", "lo", "--ports", "5000"]);
    daemon.counts_on(&["lo"]);
    load::datagram(&local, &local, PAYLOAD);
    assert_eq!(daemon.stop().group("5000"), both_ways(1));
    leaks::nothing(&host, &site.pins);
}

#[test]
fn patterns_choose_devices_by_the_names_that_they_have_now() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (mut a, peer) = veth((&host, "ppp0"), (&other, "peer0"), 1);
        let _b = veth((&host, "ppp1"), (&other, "peer1"), 2);
        let _c = veth((&host, "pppoe-wan"), (&other, "peer2"), 3);
        let _d = veth((&host, "eth0"), (&other, "peer3"), 4);
        let site = Site::new();
        let args = ["--meter", meter, "--iface", "ppp?,eth0", "--ports", "5000"];
        let mut daemon = site.start(&host, &args);
        daemon.counts_on(&["eth0", "ppp0", "ppp1"]);
        Peers::new(&a, &peer, 5000).exchange(10);

        // Another name that still matches: not a packet is lost or counted twice.
        let rename = |from: &str, to: &str| {
            host.ip(&format!("link set {from} down\nlink set {from} name {to} up"));
        };
        rename("ppp0", "ppp7");
        a.name = "ppp7".to_owned();
        peer.carries();
        daemon.counts_on(&["eth0", "ppp1", "ppp7"]);
        Peers::new(&a, &peer, 5000).exchange(10);
        assert_eq!(daemon.fresh().group("5000"), both_ways(20));

        rename("ppp7", "unwanted");
        peer.carries();
        daemon.counts_on(&["eth0", "ppp1"]);
        Peers::new(&a, &peer, 5000).exchange(10);
        let document = daemon.stop();
        assert_eq!(document.group("5000"), both_ways(20));
        assert_eq!(document.text("coverage"), "complete");
        leaks::nothing(&host, &site.pins);
    }
}

#[test]
fn no_packet_counts_on_two_devices_that_stand_on_each_other() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    // A bridge with a port; its packets pass both.
    let (mut bridge, port_peer) = pair((&host, "port"), (&other, "port"), 1);
    host.ip("link add bridge type bridge\nlink set port master bridge\nlink set port up");
    bridge.name = "bridge".to_owned();
    host.ip("link set bridge address 02:00:00:00:01:01");
    connect(&bridge, &port_peer);
    // A macvlan on a device; its packets pass both.
    let (mut above, lower_peer) = pair((&host, "lower"), (&other, "lower"), 2);
    host.ip("link set lower addrgenmode none up\nlink add above link lower type macvlan");
    above.name = "above".to_owned();
    above.mac = [2, 0, 0, 0, 2, 77];
    host.ip("link set above address 02:00:00:00:02:4d");
    connect(&above, &lower_peer);

    for (patterns, devices) in [
        ("*", ["bridge", "lower"]),
        ("port,above", ["above", "port"]),
        ("b*,a*", ["above", "bridge"]),
    ] {
        let site = Site::new();
        let mut daemon = site.start(&host, &["--iface", patterns, "--ports", "5000"]);
        daemon.counts_on(&devices);
        Peers::new(&bridge, &port_peer, 5000).exchange(10);
        Peers::new(&above, &lower_peer, 5000).exchange(20);
        assert_eq!(daemon.stop().group("5000"), both_ways(30), "{patterns}");
        leaks::nothing(&host, &site.pins);
    }
}
