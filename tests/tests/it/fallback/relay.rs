//! What passes beside the groups that rules count: the devices' own totals less the groups.

use std::net::{IpAddr, Ipv4Addr};

use traffic_tests::{
    capture::{Capture, Captured},
    daemon::{Daemon, Site},
    device::{Device, connect, pair, veth},
    load, need,
    netns::NetNs,
    stats_server::{Kind, StatsServer},
    wait,
};
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer},
        subject::Subject,
    },
    ledger::Reader,
};

use super::{METERS, needs};
use crate::schema::keeps_to;

const ETHERNET: u64 = 14;
/// Bytes in and out.
type Bytes = (u64, u64);

/// A host and somebody, over IPv4 alone: nobody sends anything by himself.
struct Pair {
    site: Site,
    host: NetNs,
    other: NetNs,
    here: Device,
    there: Device,
}

impl Pair {
    fn new() -> Self {
        let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
        let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        Self { site: Site::new(), host, other, here, there }
    }

    fn run(&self, meter: &str, more: &[&str]) -> Daemon {
        let args = ["--no-proxy", "--meter", meter, "--iface", "eth0", "--ports", "5000"];
        let mut daemon = self.site.start(&self.host, &[&args[..], more].concat());
        // From the first tick on both sides are known.
        daemon.wait_for("the first tick", |_| Some(()));
        daemon
    }

    /// Datagrams with a payload of 72 bytes to a port of the host, and replies.
    fn exchange(&self, port: u16, count: u64, replies: u64) {
        let server = load::udp(&self.here, false, port);
        let client = load::udp(&self.there, false, 40_000);
        for _ in 0..count {
            load::datagram(&client, &server, 72);
        }
        for _ in 0..replies {
            load::datagram(&server, &client, 72);
        }
    }

    /// What the device has moved, without link headers.
    fn moved(&self) -> Bytes {
        let moved = self.here.moved();
        (moved.rx_bytes - ETHERNET * moved.rx_packets, moved.tx_bytes - ETHERNET * moved.tx_packets)
    }

    /// What the ledger has, and how sure that is.
    fn booked(&self, subject: &Subject) -> Option<(Bytes, Coverage)> {
        let reader = Reader::open(&self.site.state).expect("open the ledger").expect("a ledger");
        let totals = reader.totals(subject).expect("ask the ledger");
        let usage = totals.iter().find(|usage| usage.layer == Layer::L3Skb)?;
        if *subject == Subject::Relay {
            assert_eq!(usage.traffic.packets(), 0, "nobody knows how many packets");
        }
        Some(((usage.traffic.input_bytes, usage.traffic.output_bytes), usage.coverage))
    }

    fn group(&self) -> Bytes {
        let group = Subject::group(&"5000".parse().expect("a group"));
        self.booked(&group).map_or((0, 0), |(bytes, _)| bytes)
    }
}

/// Bytes of the flows on the watched port, or of all others.
fn flows(captured: &Captured, watched: bool) -> Bytes {
    let of = |outgoing| {
        let amount = captured.sum(|flow| {
            let own = if flow.outgoing { flow.source } else { flow.destination };
            flow.outgoing == outgoing && (own == 5000) == watched
        });
        amount.bytes
    };
    (of(false), of(true))
}

const fn plus(a: Bytes, b: Bytes) -> Bytes {
    (a.0 + b.0, a.1 + b.1)
}

const fn minus(a: Bytes, b: Bytes) -> Bytes {
    (a.0 - b.0, a.1 - b.1)
}

#[test]
fn without_offloads_it_is_exactly_what_passed_on_other_ports() {
    needs!();
    need!(Tool("ethtool"));
    for meter in METERS {
        let pair = Pair::new();
        pair.here.offloads(false);
        pair.there.offloads(false);
        let daemon = pair.run(meter, &[]);
        let capture = Capture::start(&pair.here);
        pair.exchange(5000, 3, 2);
        pair.exchange(6000, 5, 7);
        load::tcp(&pair.there, &pair.here, false, 5000, 300_000);
        load::tcp(&pair.there, &pair.here, false, 6001, 200_000);
        let captured = capture.stop();
        daemon.stop();
        let (watched, others) = (flows(&captured, true), flows(&captured, false));
        assert!(others.0 > 200_000, "{others:?}");
        assert_eq!(pair.group(), watched, "{meter}");
        let estimated = Coverage::Estimated;
        assert_eq!(pair.booked(&Subject::Relay), Some((others, estimated)), "{meter}");
        let host = (plus(watched, others), estimated);
        assert_eq!(pair.booked(&Subject::Host), Some(host), "{meter}");

        let history = pair.site.run(&pair.host, &["history", "day", "--relay", "--json"]).json();
        keeps_to("history", &history);
        let usage = &history["layers"][0]["total"];
        assert_eq!(usage["input_packets"], serde_json::Value::Null, "{history}");
        assert_eq!(usage["input_bytes"], others.0, "{history}");
    }
}

#[test]
fn with_offloads_the_groups_and_the_rest_are_together_what_the_device_moved() {
    needs!();
    need!(Tool("ethtool"));
    for meter in METERS {
        let pair = Pair::new();
        // The sender's card cuts large buffers, and the host puts them together again.
        pair.there.cuts();
        let daemon = pair.run(meter, &[]);
        let before = pair.moved();
        load::tcp(&pair.there, &pair.here, false, 5000, 3_000_000);
        load::tcp(&pair.here, &pair.there, false, 5000, 3_000_000);
        let watched = minus(pair.moved(), before);
        // The device may have counted what was still on its way to the rules: that is made up for by what
        // passes later.
        load::tcp(&pair.there, &pair.here, false, 6001, 300_000);
        load::tcp(&pair.here, &pair.there, false, 6001, 300_000);
        let moved = minus(pair.moved(), before);
        daemon.stop();
        let group = pair.group();
        let relay = pair.booked(&Subject::Relay).expect("what passed beside").0;
        assert_eq!(plus(group, relay), moved, "{meter}");
        assert_eq!(pair.booked(&Subject::Host), Some((moved, Coverage::Estimated)), "{meter}");
        // The rest has the headers of segments that the host put together: 52 bytes each.
        let headers = watched.0 - group.0;
        eprintln!("{meter}: {headers} bytes of {} are headers that no rule saw", watched.0);
        assert!(headers > 0 && headers < watched.0 / 25, "{meter}: {headers} of {watched:?}");
        // What leaves is cut after both have counted it.
        assert_eq!(group.1, watched.1, "{meter}");
    }
}

#[test]
fn groups_that_another_way_leads_to_make_it_smaller_and_never_negative() {
    needs!();
    for meter in METERS {
        let pair = Pair::new();
        let daemon = pair.run(meter, &[]);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let server = load::udp_at(&pair.host, (local, 5000).into());
        let client = load::udp_at(&pair.host, (local, 40_000).into());
        for _ in 0..50 {
            load::datagram(&client, &server, 72);
        }
        daemon.stop();
        assert_eq!(pair.group(), (5000, 0), "{meter}");
        assert_eq!(pair.booked(&Subject::Relay), None, "{meter}");
        assert_eq!(pair.booked(&Subject::Host), Some(((5000, 0), Coverage::Estimated)), "{meter}");
    }
}

#[test]
fn it_goes_on_over_the_life_of_a_daemon() {
    needs!();
    for meter in METERS {
        let pair = Pair::new();
        let mut daemon = pair.run(meter, &["--persist"]);
        pair.exchange(6000, 3, 1);
        daemon.fresh();
        daemon.kill();
        // Nobody looks.
        pair.exchange(6000, 5, 2);
        pair.exchange(5000, 7, 7);
        let mut daemon = pair.run(meter, &["--persist"]);
        pair.exchange(6000, 11, 4);
        daemon.fresh();
        daemon.stop();
        assert_eq!(pair.group(), (700, 700), "{meter}");
        let relay = ((1900, 700), Coverage::Estimated);
        assert_eq!(pair.booked(&Subject::Relay), Some(relay), "{meter}");
        pair.site.run(&pair.host, &["clean"]);
    }
}

#[test]
fn a_device_that_is_made_anew_counts_from_its_own_zero_and_it_is_a_gap() {
    needs!();
    for meter in METERS {
        let mut pair = Pair::new();
        let mut daemon = pair.run(meter, &[]);
        pair.exchange(6000, 20, 10);
        daemon.fresh();
        pair.host.ip("link del eth0");
        daemon.fresh();
        let names = ((&pair.host, "eth0"), (&pair.other, "eth0"));
        (pair.here, pair.there) = veth(names.0, names.1, 1);
        let booked = |pair: &Pair| pair.booked(&Subject::Relay).expect("what passed");
        assert_eq!(booked(&pair), ((2000, 1000), Coverage::Estimated), "{meter}");
        // What passes before its first tick is not seen.
        let ((seen, _), coverage) = wait::until("the new device to be read", || {
            pair.exchange(6000, 1, 0);
            let booked = booked(&pair);
            (booked.0.0 > 2000).then_some(booked)
        });
        assert_eq!(coverage, Coverage::Gap, "{meter}");
        pair.exchange(6000, 3, 2);
        daemon.stop();
        let ((input, output), _) = booked(&pair);
        let since = input - 2000;
        assert_eq!((since % 100, output), (0, 1000 + 200), "{meter}");
        assert!(input >= seen + 300, "{meter}: {seen}, {input}");
    }
}

#[test]
fn on_a_bridge_and_a_macvlan_link_headers_are_taken_off_where_the_device_counts_them() {
    needs!();
    for (name, make) in [
        // Or it tells its neighbours which multicast groups it wants, and that is counted.
        ("br0", "link add br0 type bridge mcast_snooping 0\nlink set eth0 master br0"),
        ("mac0", "link add link eth0 name mac0 type macvlan mode bridge"),
    ] {
        let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
        let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 9);
        connect(&here, &there);
        let mut ends = Vec::new();
        for (ns, end) in [(&host, 1), (&other, 2)] {
            ns.ip(make);
            let mac = format!("02:00:00:00:07:{end:02x}");
            ns.ip(&format!(
                "link set {name} address {mac}\nlink set {name} addrgenmode none\n\
                 link set {name} up\naddress add 10.0.7.{end}/24 dev {name}"
            ));
            ends.push(mac);
        }
        for (ns, end) in [(&host, 2), (&other, 1)] {
            let mac = &ends[end - 1];
            ns.ip(&format!("neigh replace 10.0.7.{end} lladdr {mac} dev {name} nud permanent"));
            // What is sent before is dropped.
            wait::until("a device to have a carrier", || {
                let state = ns.sh(&["ip", "-o", "link", "show", "dev", name]);
                state.contains("state UP").then_some(())
            });
        }
        let site = Site::new();
        let args = ["--no-proxy", "--meter", "nft", "--iface", name, "--ports", "5000"];
        let mut daemon = site.start(&host, &args);
        daemon.wait_for("the first tick", |_| Some(()));
        let at = |end| IpAddr::V4(Ipv4Addr::new(10, 0, 7, end));
        for (port, count) in [(5000, 4), (6000, 9)] {
            let server = load::udp_at(&host, (at(1), port).into());
            let client = load::udp_at(&other, (at(2), 40_000).into());
            for _ in 0..count {
                load::datagram(&client, &server, 72);
                load::datagram(&server, &client, 172);
            }
        }
        daemon.fresh();
        daemon.stop();
        let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
        let relay = reader.totals(&Subject::Relay).expect("ask the ledger");
        let bytes: Vec<_> = relay
            .iter()
            .map(|usage| (usage.traffic.input_bytes, usage.traffic.output_bytes))
            .collect();
        assert_eq!(bytes, [(900, 1800)], "{name}");
    }
}

#[test]
fn the_merged_report_says_that_it_is_an_estimate() {
    needs!();
    let pair = Pair::new();
    let api = (Ipv4Addr::LOCALHOST, 10_085).into();
    let fake = StatsServer::inside(&pair.host, Kind::V2ray4, api);
    fake.user("a@x", 0, 0);
    let args = ["--meter", "nft", "--iface", "eth0", "--ports", "5000", "--api", &api.to_string()];
    let mut daemon = pair.site.start(&pair.host, &args);
    daemon.wait_for("the first tick", |_| Some(()));
    pair.exchange(5000, 3, 1);
    pair.exchange(6000, 2, 4);
    let stats = daemon.wait_for("what passed beside", |document| {
        let stats = &document.0["stats"];
        (stats["relay"]["output_bytes"] == 400).then(|| stats.clone())
    });
    keeps_to("stats", &stats);
    assert_eq!(stats["relay"]["input_bytes"], 200, "{stats}");
    assert_eq!(stats["relay"]["coverage"], "estimated", "{stats}");
    let told = pair.site.run(&pair.host, &["stats", "total"]).stdout;
    assert!(told.contains("relay (devices less groups, estimated): 200 B in, 400 B out"), "{told}");
    daemon.stop();
}
