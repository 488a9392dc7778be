//! The fallback's meter with nftables, in namespaces of its own: exact numbers, and rules of others
//! that stay as they are.

mod families;

use std::net::{IpAddr, Ipv4Addr};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use traffic_tests::{
    capture::{Capture, Flow},
    device::{Device, veth},
    load, need,
    netns::NetNs,
};
use traffic_user::{
    accounting::{
        ident::Groups,
        reading::{Coverage, Layer, Snapshot, Traffic},
    },
    meter::{
        Before, MeterError,
        nft::{self, Installed, NftMeter},
    },
};

fn groups(text: &str) -> Groups {
    Groups::parse(text, 60_000).expect("groups")
}

/// A host with a meter, and somebody who talks to it.
struct Host {
    here: Device,
    there: Device,
    meter: Option<NftMeter>,
}

impl Host {
    fn new() -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        Self { here, there, meter: None }
    }

    fn start(&mut self, list: &str, persist: bool) {
        self.start_from(list, persist, None);
    }

    fn start_from(&mut self, list: &str, persist: bool, booked: Option<&Snapshot>) {
        let before = Before { booked, gap: false };
        let started = self.here.ns.run(|| NftMeter::start(&groups(list), persist, before));
        self.meter = Some(started.expect("start the meter"));
    }

    fn read(&mut self) -> Snapshot {
        let meter = self.meter.as_mut().expect("a meter");
        self.here.ns.run(|| meter.read()).expect("read the meter")
    }

    fn watch(&mut self, list: &str) {
        let meter = self.meter.as_mut().expect("a meter");
        self.here.ns.run(|| meter.watch(&groups(list))).expect("change the groups");
    }

    fn losses(&mut self) -> Vec<String> {
        self.meter.as_mut().expect("a meter").losses()
    }

    fn stop(&mut self) {
        let meter = self.meter.take();
        self.here.ns.run(move || drop(meter));
    }

    fn rules(&self) -> String {
        self.here.ns.sh(&["nft", "-a", "list", "ruleset"])
    }

    /// So many packets of 100 bytes to a port over IPv4, and as many back.
    fn exchange(&self, port: u16, count: u64) {
        self.exchange_over(false, port, count);
    }

    fn exchange_over(&self, ipv6: bool, port: u16, count: u64) {
        let (server, client) =
            (load::udp(&self.here, ipv6, port), load::udp(&self.there, ipv6, 40_000));
        let size = if ipv6 { 52 } else { 72 };
        for _ in 0..count {
            load::datagram(&client, &server, size);
            load::datagram(&server, &client, size);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

fn both_ways(bytes: u64, packets: u64) -> Traffic {
    Traffic {
        input_bytes: bytes,
        input_packets: packets,
        output_bytes: bytes,
        output_packets: packets,
    }
}

fn of(snapshot: &Snapshot, group: &str) -> Traffic {
    let reading = snapshot.groups.iter().find(|reading| reading.group.to_string() == group);
    reading.unwrap_or_else(|| panic!("no group {group}")).lanes.total()
}

#[test]
fn every_byte_of_every_lane_of_a_port_a_list_and_a_range_is_counted() {
    need!(Root, Netns, Tool("ip"), Tool("nft"), Tool("ethtool"));
    let mut host = Host::new();
    host.here.offloads(false);
    host.there.offloads(false);
    host.start("5000,443+8443=web,20000-20010/udp=hop", false);
    let capture = Capture::start(&host.here);
    for ipv6 in [false, true] {
        for port in [5000, 443, 8443, 20000, 20005, 20010, 20011] {
            let server = load::udp(&host.here, ipv6, port);
            let client = load::udp(&host.there, ipv6, 40_000);
            for size in [0, 1, 100, 1000, 1452] {
                load::datagram(&client, &server, size);
                load::datagram(&server, &client, size);
            }
        }
        for port in [5000, 443, 20000] {
            load::tcp(&host.there, &host.here, ipv6, port, 300_000);
        }
    }
    let captured = capture.stop();
    let snapshot = host.read();
    assert_eq!((snapshot.meter, snapshot.layer), ("nft", Layer::L3Skb));
    assert_eq!((snapshot.coverage, snapshot.skipped), (Coverage::Complete, None));
    let lanes = |group: &str| {
        snapshot.groups.iter().find(|reading| reading.group.to_string() == group).unwrap().lanes
    };
    let udp = |headers: u64, ports: u64| both_ways(ports * (2553 + 5 * headers), ports * 5);
    for (group, ports) in [("5000", 1), ("443+8443=web", 2), ("20000-20010/udp=hop", 3)] {
        assert_eq!(lanes(group).udp4, udp(28, ports), "{group}");
        assert_eq!(lanes(group).udp6, udp(48, ports), "{group}");
    }
    for (group, port) in [("5000", 5000), ("443+8443=web", 443)] {
        for (ipv6, counted) in [(false, lanes(group).tcp4), (true, lanes(group).tcp6)] {
            let amount = |outgoing| {
                captured.amount(Flow {
                    outgoing,
                    udp: false,
                    ipv6,
                    source: port,
                    destination: port,
                })
            };
            let (input, output) = (amount(false), amount(true));
            assert!(input.packets > 100, "{input:?}");
            let want = Traffic {
                input_bytes: input.bytes,
                input_packets: input.packets,
                output_bytes: output.bytes,
                output_packets: output.packets,
            };
            assert_eq!(counted, want, "{group}, IPv6 {ipv6}");
        }
    }
    // Not watched as TCP.
    assert_eq!(lanes("20000-20010/udp=hop").tcp4, Traffic::default());
    host.stop();
    assert_eq!(host.rules(), "");
}

#[test]
fn a_packet_over_the_loopback_enters_its_port_once() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000", false);
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let server = load::udp_at(&host.here.ns, (local, 5000).into());
    let client = load::udp_at(&host.here.ns, (local, 40_000).into());
    load::datagram(&client, &server, 72);
    load::datagram(&client, &server, 72);
    load::datagram(&server, &client, 972);
    let want =
        Traffic { input_bytes: 200, input_packets: 2, output_bytes: 1000, output_packets: 1 };
    assert_eq!(of(&host.read(), "5000"), want);
}

#[test]
fn behind_a_redirect_the_port_that_listens_is_counted_both_ways() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.here.ns.nft(
        "table ip nat {\nchain pre { type nat hook prerouting priority dstnat; \
         udp dport 30000-30100 redirect to :5000; }\n}\n",
    );
    host.start("5000", false);
    let server = load::udp(&host.here, false, 5000);
    let client = load::udp(&host.there, false, 40_000);
    load::datagram_to(&client, &server, (host.here.v4, 30_007).into(), 72);
    load::datagram(&server, &client, 972);
    let want =
        Traffic { input_bytes: 100, input_packets: 1, output_bytes: 1000, output_packets: 1 };
    assert_eq!(of(&host.read(), "5000"), want);
}

#[test]
fn a_flush_is_noticed_put_back_and_begins_an_epoch() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000,6000", false);
    host.exchange(5000, 3);
    let before = host.read();
    assert_eq!(of(&before, "5000"), both_ways(300, 3));
    for flush in ["flush ruleset", "delete table ip traffic; delete table ip6 traffic"] {
        let epoch = host.read().epoch;
        host.here.ns.nft(flush);
        host.exchange(5000, 2);
        let after = host.read();
        assert_ne!(after.epoch, epoch);
        assert_eq!(after.coverage, Coverage::Gap);
        assert_eq!(of(&after, "5000"), Traffic::default());
        assert_eq!(host.losses(), ["the table ip traffic", "the table ip6 traffic"]);
        host.exchange(5000, 4);
        let again = host.read();
        assert_eq!((again.epoch, of(&again, "5000")), (after.epoch, both_ways(400, 4)));
        assert_eq!(host.losses(), Vec::<String>::new());
    }
}

#[test]
fn when_half_is_gone_what_the_rest_has_counted_is_not_lost() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let losses = [
        ("flush chain ip traffic output", "1 of 1 rules in the chain ip traffic output"),
        ("flush map ip traffic ports_out", "4 of 4 entries in the map ip traffic ports_out"),
        (
            "delete element ip traffic ports_out { udp . 5000 }",
            "1 of 4 entries in the map ip traffic ports_out",
        ),
    ];
    for (change, said) in losses {
        let mut host = Host::new();
        host.start("5000,6000", false);
        host.exchange(5000, 3);
        let before = host.read();
        host.exchange(5000, 2);
        host.here.ns.nft(change);
        host.exchange(5000, 1);
        let after = host.read();
        assert_ne!(after.epoch, before.epoch, "{change}");
        // Two replies before and none after; what the other direction counted is there whole.
        let want =
            Traffic { input_bytes: 300, input_packets: 3, output_bytes: 200, output_packets: 2 };
        assert_eq!(of(&after, "5000"), want, "{change}");
        assert_eq!(host.losses(), [said]);
        host.exchange(5000, 1);
        assert_eq!(of(&host.read(), "5000"), want.plus(both_ways(100, 1)));
    }
}

#[test]
fn counters_that_somebody_sets_back_begin_an_epoch() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000", false);
    host.exchange(5000, 3);
    let before = host.read();
    host.here.ns.sh(&["nft", "reset", "counters", "table", "ip", "traffic"]);
    host.exchange(5000, 1);
    let after = host.read();
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(of(&after, "5000"), both_ways(100, 1));
    assert_eq!(host.losses(), ["2 counters were set back or removed"]);
}

#[test]
fn a_change_of_the_groups_loses_no_packet_of_those_that_stay() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000/udp,6000", false);
    host.exchange(6000, 1);
    let epoch = host.read().epoch;
    let _receiver = load::udp(&host.here, false, 5000);
    let capture = Capture::start(&host.here);
    let sender = load::Sender::start(&host.there, &host.here, 5000);
    for list in ["5000/udp", "5000/udp,7000", "5000/udp,20000-24000/udp,6000", "5000/udp=x"] {
        host.watch(list);
        sender.goes_on(50);
    }
    sender.stop();
    let captured = capture.stop();
    let sent = captured.sum(|flow| flow.udp && flow.destination == 5000);
    let snapshot = host.read();
    let counted = of(&snapshot, "5000/udp=x");
    assert!(sent.packets >= 200, "{sent:?}");
    assert_eq!((counted.input_packets, counted.input_bytes), (sent.packets, sent.bytes));
    assert_eq!((snapshot.epoch, snapshot.coverage), (epoch, Coverage::Complete));
    // Those that went stand still.
    host.exchange(6000, 5);
    assert_eq!(of(&host.read(), "6000"), both_ways(100, 1));
}

#[test]
fn rules_that_persist_count_without_a_daemon_and_are_taken_over() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000,6000=other;\"name\"", true);
    host.exchange(5000, 1);
    let epoch = host.read().epoch;
    host.stop();
    host.exchange(5000, 2);
    let ns = host.here.ns.clone();
    let dump = ns.run(|| Installed::open().unwrap().unwrap().read().unwrap());
    assert_eq!((dump.epoch, of(&dump, "5000")), (epoch, both_ways(300, 3)));
    // A run without --persist leaves them alone.
    let refused = ns.run(|| NftMeter::start(&groups("5000"), false, Before::default()).err());
    assert!(matches!(refused, Some(MeterError::OtherRules { .. })), "{refused:?}");
    host.start("5000,6000=other;\"name\",7000", true);
    host.exchange(5000, 1);
    let snapshot = host.read();
    assert_eq!((snapshot.epoch, of(&snapshot, "5000")), (epoch, both_ways(400, 4)));
    assert_eq!(snapshot.coverage, Coverage::Complete);
    // Half of them gone while nobody looked.
    host.stop();
    host.here.ns.nft("flush chain ip traffic input");
    host.start("5000", true);
    let snapshot = host.read();
    assert!(snapshot.epoch != epoch && snapshot.coverage == Coverage::Gap);
    assert_eq!(host.losses(), ["1 of 1 rules in the chain ip traffic input"]);
    host.stop();
    assert_eq!(ns.run(|| nft::clean(true)).unwrap().len(), 1);
    assert!(!host.rules().is_empty());
    assert_eq!(ns.run(|| nft::clean(false)).unwrap().len(), 1);
    assert_eq!(host.rules(), "");
}

#[test]
fn what_a_damaged_table_counted_after_the_last_booking_is_not_lost() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    // What was done, what is said, packets of 5000 in and out that are in the new epoch.
    let cases = [
        ("flush chain ip traffic output", "1 of 1 rules in the chain ip traffic output", 2 + 1, 2),
        (
            "delete element ip traffic ports_in { udp . 5000 }",
            "1 of 4 entries in the map ip traffic ports_in",
            2,
            3,
        ),
        ("reset counters table ip traffic", "4 counters were set back or removed", 1, 1),
        (
            "flush chain ip traffic input; delete map ip traffic ports_in",
            "1 of 1 rules in the chain ip traffic input",
            2,
            3,
        ),
    ];
    for (change, said, input, output) in cases {
        let mut host = Host::new();
        host.start("5000,6000", true);
        host.exchange(5000, 3);
        host.exchange(6000, 3);
        let first = host.read();
        host.stop();
        host.exchange(5000, 2);
        host.exchange(6000, 4);
        host.here.ns.sh(&["nft", change]);
        host.exchange(5000, 1);
        // 6000 is not asked for any more.
        host.start_from("5000", true, Some(&first));
        let second = host.read();
        assert_ne!(second.epoch, first.epoch, "{change}");
        assert_eq!(second.coverage, Coverage::Gap, "{change}");
        let want = Traffic {
            input_bytes: input * 100,
            input_packets: input,
            output_bytes: output * 100,
            output_packets: output,
        };
        assert_eq!(of(&second, "5000"), want, "{change}");
        if !change.starts_with("reset") {
            assert_eq!(of(&second, "6000"), both_ways(400, 4), "{change}");
        }
        assert_eq!(host.losses()[0], said);
        host.stop();
        // Nothing of it was booked. It is still there, once.
        host.start_from("5000", true, Some(&first));
        let third = host.read();
        assert_eq!((third.epoch, of(&third, "5000")), (second.epoch, want), "{change}");
        assert_eq!(host.losses(), Vec::<String>::new(), "{change}");
        host.stop();
        host.here.ns.run(|| nft::clean(false)).unwrap();
    }
}

#[test]
fn one_port_is_taken_off_and_the_others_count_on() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("80,5000+5002=web,8080", true);
    host.exchange(5002, 1);
    host.stop();
    let ns = host.here.ns.clone();
    let said =
        ns.run(|| [nft::clean_port(80, false).unwrap(), nft::clean_port(5000, false).unwrap()]);
    assert_eq!(
        said.concat(),
        ["nft counters of port 80", "port 5000 of the nft counters of 5000,5002"]
    );
    host.exchange(5000, 1);
    host.exchange(5002, 1);
    let dump = ns.run(|| Installed::open().unwrap().unwrap().read().unwrap());
    assert_eq!(dump.groups.len(), 2);
    // Other ports are another group, which begins at zero: what it had would be charged again.
    assert_eq!(of(&dump, "5002=web"), both_ways(100, 1));
    assert_eq!((of(&dump, "8080"), dump.coverage), (Traffic::default(), Coverage::Complete));
    ns.run(|| nft::clean(false)).unwrap();
}

#[test]
fn what_is_left_of_a_group_may_have_been_there_before_and_the_last_port_takes_all_along() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000+5002", true);
    host.exchange(5000, 4);
    host.start("5000-5002", true);
    host.stop();
    let ns = host.here.ns.clone();
    let installed = || ns.run(|| Installed::open().unwrap().map(|rules| rules.read().unwrap()));
    ns.run(|| nft::clean_port(5001, false).unwrap());
    let dump = installed().expect("rules");
    let groups: Vec<_> =
        dump.groups.iter().map(|one| (one.group.to_string(), one.watched)).collect();
    assert_eq!(groups, [("5000+5002".to_owned(), true)]);
    assert_eq!(of(&dump, "5000+5002"), both_ways(400, 4), "it goes on where it was");
    host.exchange(5002, 1);
    assert_eq!(of(&installed().expect("rules"), "5000+5002"), both_ways(500, 5));
    for port in [5000, 5002] {
        ns.run(|| nft::clean_port(port, false).unwrap());
    }
    assert!(installed().is_none());
    assert_eq!(ns.sh(&["nft", "list", "ruleset"]), "");
}

#[test]
fn a_rule_that_somebody_put_among_ours_is_never_flushed() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000", false);
    host.exchange(5000, 2);
    let epoch = host.read().epoch;
    host.here.ns.nft("add rule ip6 traffic input udp dport 5000 counter comment \"mine\"");
    host.exchange(5000, 1);
    let before = host.rules();
    // Few ports fit into the maps as they are; many need others, and the chains written anew.
    for list in ["5000,6000", "5000,20000-40000"] {
        let meter = host.meter.as_mut().expect("a meter");
        let error = host.here.ns.run(|| meter.watch(&groups(list))).err();
        assert!(matches!(error, Some(MeterError::ForeignRules { .. })), "{list}: {error:?}");
        assert_eq!(host.rules(), before, "{list}");
    }
    // What is there goes on.
    host.exchange(5000, 1);
    let snapshot = host.read();
    assert_eq!((snapshot.epoch, of(&snapshot, "5000")), (epoch, both_ways(400, 4)));
    host.here.ns.nft("flush chain ip6 traffic input");
}

/// Some rules of somebody, at the hooks where ours are and elsewhere.
fn foreign_rules() -> impl Strategy<Value = String> {
    let rule = prop_oneof![
        Just("tcp dport 22 counter accept".to_owned()),
        (1u16..u16::MAX).prop_map(|port| format!("udp dport {port} counter drop")),
        Just("ct state established,related counter accept".to_owned()),
        Just("meta l4proto { tcp, udp } th dport 443 counter".to_owned()),
        Just("ip saddr @bad counter comment \"traffic\"".to_owned()),
    ];
    let chain = (
        prop_oneof![Just("input"), Just("output"), Just("forward")],
        -400i32..400,
        proptest::collection::vec(rule, 0..5),
    );
    let table = proptest::collection::vec(chain, 1..4);
    proptest::collection::vec(table, 0..4).prop_map(|tables| {
        let mut text = String::new();
        for (n, chains) in tables.iter().enumerate() {
            text += &format!(
                "table inet theirs{n} {{\nset bad {{ type ipv4_addr; elements = {{ 192.0.2.1 }}; }}\n"
            );
            for (m, (hook, priority, rules)) in chains.iter().enumerate() {
                text += &format!(
                    "chain c{m} {{ type filter hook {hook} priority {priority};\n{}\n}}\n",
                    rules.join("\n")
                );
            }
            text += "}\n";
        }
        text
    })
}

#[test]
fn rules_of_others_stay_byte_for_byte_as_they_are() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut runner =
        TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    let result = runner.run(&foreign_rules(), |rules| {
        let ns = NetNs::new();
        ns.nft(&rules);
        let list = || ns.sh(&["nft", "-a", "list", "ruleset"]);
        let before = list();
        let theirs = || list().split("table ip traffic").next().unwrap_or_default().to_owned();
        let mut meter = ns
            .run(|| NftMeter::start(&groups("443,20000-20100/udp"), true, Before::default()))
            .unwrap();
        prop_assert_eq!(&theirs(), &before);
        ns.run(|| meter.watch(&groups("443,8443/tcp,30000-33000"))).unwrap();
        prop_assert_eq!(&theirs(), &before);
        ns.nft("flush table ip traffic; flush table ip6 traffic");
        ns.run(|| meter.read()).unwrap();
        prop_assert_eq!(&theirs(), &before);
        ns.run(move || drop(meter));
        ns.run(|| nft::clean(false)).unwrap();
        prop_assert_eq!(list(), before);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn it_works_here_and_the_trial_leaves_nothing() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let ns = NetNs::new();
    assert_eq!(ns.run(nft::try_here), Ok(()));
    assert_eq!(ns.sh(&["nft", "list", "ruleset"]), "");
}

#[test]
fn a_thousand_groups_are_read_as_they_are_set() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let list: Vec<_> = (10_000..11_000).map(|port| port.to_string()).collect();
    let mut host = Host::new();
    let begin = std::time::Instant::now();
    host.start(&list.join(","), false);
    let set = begin.elapsed();
    host.exchange(10_999, 2);
    host.read();
    let begin = std::time::Instant::now();
    let snapshot = host.read();
    eprintln!("1,000 groups: set in {set:?}, read in {:?}", begin.elapsed());
    assert_eq!(snapshot.groups.len(), 1000);
    assert_eq!(snapshot.total(), both_ways(200, 2));
    assert_eq!(of(&snapshot, "10999"), both_ways(200, 2));
}
