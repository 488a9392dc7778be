//! The meter `iptables` with the real programs: both back ends, both families.

mod adopted;
mod base;
mod exact;
mod failing;
mod others;
mod traps;

use std::{process::Stdio, time::Instant};

use traffic_tests::{
    device::{Device, veth},
    load, need,
    netns::NetNs,
};
use traffic_user::{
    accounting::{
        ident::Groups,
        reading::{Coverage, Lane, Layer, Snapshot, Traffic},
    },
    meter::{
        Before, MeterError,
        iptables::{self, Backend, ForeignRules, Installed, IptablesMeter},
    },
};

const PAYLOAD: usize = 72;

/// A host whose rules are in one back end, and somebody who sends.
struct Site {
    here: Device,
    there: Device,
    backend: Backend,
}

impl Site {
    fn new(backend: Backend) -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        let site = Self { here, there, backend };
        // Rules of others decide which back end is used, and stay.
        for tool in ["iptables", "ip6tables"] {
            site.restore(
                tool,
                "*filter\n-A INPUT -i lo -m comment --comment \"an \\\"admin's\\\" rule\" -j ACCEPT\n\
                 -A OUTPUT -p tcp -m tcp --dport 25 -j DROP\nCOMMIT\n",
            );
        }
        site
    }

    fn both() -> [Self; 2] {
        Backend::ALL.map(Self::new)
    }

    /// All rules of all tables of this back end, with their counters.
    fn listed(&self) -> String {
        ["iptables", "ip6tables"].map(|tool| listed(&self.here.ns, tool, self.backend)).concat()
    }

    fn name(&self, tool: &str, end: &str) -> String {
        format!("{tool}-{}{end}", self.backend.name())
    }

    fn restore(&self, tool: &str, lines: &str) {
        use std::io::Write as _;
        let program = need::tool(&self.name(tool, "-restore")).expect("a tool");
        let mut child = self
            .here
            .ns
            .command(program)
            .args(["--noflush", "-w", "20"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("start a tool");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("write to a tool");
        assert!(child.wait().expect("wait for a tool").success(), "{lines}");
    }

    fn sh(&self, tool: &str, words: &str) {
        let mut all = vec![self.name(tool, "")];
        all.extend(["-w", "20"].map(str::to_owned));
        all.extend(words.split(' ').map(str::to_owned));
        self.here.ns.sh(&all.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// All rules of both families, without counters and times.
    fn rules(&self) -> String {
        ["iptables", "ip6tables"]
            .map(|tool| {
                let save = self.here.ns.sh(&[&self.name(tool, "-save"), "-t", "filter"]);
                let lines = save.lines().filter(|line| !line.starts_with('#'));
                let lines = lines.map(|line| line.split(" [").next().unwrap_or(line));
                lines.collect::<Vec<_>>().join("\n")
            })
            .join("\n")
    }

    fn start(&self, groups: &str, persist: bool) -> Result<IptablesMeter, MeterError> {
        let groups = parse(groups);
        self.here.ns.run(|| IptablesMeter::start(&groups, persist, Before::default()))
    }

    fn read(&self, meter: &mut IptablesMeter) -> Snapshot {
        self.here.ns.run(|| meter.read()).expect("read")
    }

    fn watch(&self, meter: &mut IptablesMeter, groups: &str) {
        self.here.ns.run(|| meter.watch(&parse(groups))).expect("watch");
    }

    fn drop(&self, meter: IptablesMeter) {
        self.here.ns.run(move || drop(meter));
    }

    /// So many datagrams in and one fewer out.
    fn exchange(&self, ipv6: bool, port: u16, count: u64) {
        let server = load::udp(&self.here, ipv6, port);
        let client = load::udp(&self.there, ipv6, 40_000);
        for at in 0..count {
            load::datagram(&client, &server, PAYLOAD);
            if at > 0 {
                load::datagram(&server, &client, PAYLOAD);
            }
        }
    }
}

/// All rules of one program, with their counters. Those of policies are left out where each change of
/// anything by `iptables-legacy`, whoever makes it, sets them back.
fn listed(ns: &NetNs, tool: &str, backend: Backend) -> String {
    let save = ns.sh(&[&format!("{tool}-{}-save", backend.name()), "-c"]);
    let lines = save.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| match (backend, line.split_once(" [")) {
        (Backend::Legacy, Some((policy, _))) if line.starts_with(':') => policy,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn parse(groups: &str) -> Groups {
    Groups::parse(groups, 2000).expect("groups")
}

/// What [`Site::exchange`] is with its headers.
fn exchanged(ipv6: bool, count: u64) -> Traffic {
    let whole = PAYLOAD as u64 + if ipv6 { 48 } else { 28 };
    Traffic {
        input_bytes: whole * count,
        input_packets: count,
        output_bytes: whole * (count - 1),
        output_packets: count - 1,
    }
}

#[track_caller]
fn lane(snapshot: &Snapshot, group: &str, lane: Lane) -> Traffic {
    let reading = snapshot.groups.iter().find(|reading| reading.group.to_string() == group);
    *reading.unwrap_or_else(|| panic!("no {group}")).lanes.lane(lane)
}

#[test]
fn packets_are_counted_exactly_and_all_rules_go_again() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let before = site.rules();
        let groups = "443,500+600+700-710/udp=a \"b\" \\c,20000-30000/udp";
        let mut meter = site.start(groups, false).expect("start");
        assert_eq!(meter.backend(), site.backend);
        for (count, port) in [443, 600, 705, 25_000, 444].into_iter().enumerate() {
            site.exchange(false, port, count as u64 + 3);
            site.exchange(true, port, count as u64 + 10);
        }
        let snapshot = site.read(&mut meter);
        assert_eq!((snapshot.meter, snapshot.layer), ("iptables", Layer::L3Skb));
        assert_eq!((snapshot.coverage, snapshot.skipped), (Coverage::Complete, None));
        let list = "500+600+700-710/udp=a \"b\" \\c";
        assert_eq!(lane(&snapshot, "443", Lane::Udp4), exchanged(false, 3));
        assert_eq!(lane(&snapshot, "443", Lane::Udp6), exchanged(true, 10));
        assert_eq!(lane(&snapshot, "443", Lane::Tcp4), Traffic::default());
        let both = |ipv6, a, b| exchanged(ipv6, a).plus(exchanged(ipv6, b));
        assert_eq!(lane(&snapshot, list, Lane::Udp4), both(false, 4, 5));
        assert_eq!(lane(&snapshot, list, Lane::Udp6), both(true, 11, 12));
        assert_eq!(lane(&snapshot, "20000-30000/udp", Lane::Udp4), exchanged(false, 6));
        assert_eq!(meter.losses(), Vec::<String>::new());
        site.drop(meter);
        assert_eq!(site.rules(), before);
    }
}

#[test]
fn rules_that_vanish_are_put_back_and_those_that_stayed_lose_nothing() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp,80/udp", false).expect("start");
        site.exchange(false, 443, 5);
        site.exchange(true, 443, 5);
        let first = site.read(&mut meter);
        // IPv4 goes on uncounted by nobody: only a jump of IPv6 is gone.
        site.exchange(false, 443, 7);
        site.sh("ip6tables", "-F INPUT");
        let second = site.read(&mut meter);
        assert_ne!(first.epoch, second.epoch);
        assert_eq!(second.coverage, Coverage::Gap);
        assert_eq!(lane(&second, "443/udp", Lane::Udp4), exchanged(false, 7));
        assert_eq!(lane(&second, "443/udp", Lane::Udp6), Traffic::default());
        assert_eq!(meter.losses(), ["IPv6: the jump from INPUT to TRAFFIC_IN was gone"]);
        site.exchange(true, 443, 4);
        let third = site.read(&mut meter);
        assert_eq!(third.epoch, second.epoch);
        assert_eq!(lane(&third, "443/udp", Lane::Udp6), exchanged(true, 4));
        assert_eq!(lane(&third, "443/udp", Lane::Udp4), exchanged(false, 7));

        site.sh("iptables", "-Z");
        site.exchange(false, 443, 30);
        let fourth = site.read(&mut meter);
        assert_ne!(fourth.epoch, third.epoch);
        assert_eq!(lane(&fourth, "443/udp", Lane::Udp4), exchanged(false, 30));
        assert_eq!(lane(&fourth, "443/udp", Lane::Udp6), Traffic::default());
        assert_eq!(meter.losses().len(), 1);

        site.sh("iptables", "-F");
        let fifth = site.read(&mut meter);
        site.exchange(false, 80, 2);
        let sixth = site.read(&mut meter);
        assert_eq!(sixth.epoch, fifth.epoch);
        assert_eq!(lane(&sixth, "80/udp", Lane::Udp4), exchanged(false, 2));
        site.drop(meter);
        assert!(!site.rules().contains("TRAFFIC"));
    }
}

#[test]
fn groups_come_and_go_and_come_back_where_they_were() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp,80/udp", true).expect("start");
        site.exchange(false, 443, 5);
        site.exchange(true, 80, 6);
        let first = site.read(&mut meter);
        site.watch(&mut meter, "80/udp,90/udp");
        site.exchange(false, 443, 9);
        site.exchange(true, 80, 2);
        let second = site.read(&mut meter);
        assert_eq!(second.epoch, first.epoch);
        assert_eq!(lane(&second, "443/udp", Lane::Udp4), exchanged(false, 5));
        let watched: Vec<bool> = second.groups.iter().map(|reading| reading.watched).collect();
        assert_eq!(watched, [false, true, true]);
        let six_and_two = exchanged(true, 6).plus(exchanged(true, 2));
        assert_eq!(lane(&second, "80/udp", Lane::Udp6), six_and_two);

        // It ends, and its rules go on; the next takes them over.
        site.drop(meter);
        site.exchange(true, 80, 3);
        let installed = site.here.ns.run(Installed::open).expect("open").expect("our rules");
        let read = site.here.ns.run(|| installed.read()).expect("read");
        assert_eq!(read.epoch, first.epoch);
        assert_eq!(lane(&read, "443/udp", Lane::Udp4), exchanged(false, 5));
        let left = site.start("443/udp", false);
        assert!(matches!(left, Err(MeterError::OtherRules { .. })), "{left:?}");
        let mut meter = site.start("443/udp,80/udp", true).expect("adopt");
        site.exchange(false, 443, 4);
        let third = site.read(&mut meter);
        assert_eq!((third.epoch, third.coverage), (first.epoch, Coverage::Complete));
        let nine = exchanged(false, 5).plus(exchanged(false, 4));
        assert_eq!(lane(&third, "443/udp", Lane::Udp4), nine);
        assert_eq!(lane(&third, "80/udp", Lane::Udp6), six_and_two.plus(exchanged(true, 3)));
        assert_eq!(meter.losses(), Vec::<String>::new());
        site.drop(meter);

        let said = site.here.ns.run(|| iptables::clean_port(80, false)).expect("clean a port");
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(site.rules().contains("443/udp") && !site.rules().contains("80/udp"));
        let would = site.here.ns.run(|| iptables::clean(true)).expect("say what would go");
        let did = site.here.ns.run(|| iptables::clean(false)).expect("clean");
        assert!(would == did && !site.rules().contains("TRAFFIC"), "{did:?}");
    }
}

#[test]
fn a_group_that_gets_another_name_goes_on_with_its_numbers() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp,80/udp=old", true).expect("start");
        site.exchange(false, 443, 5);
        site.exchange(true, 80, 6);
        let first = site.read(&mut meter);
        for groups in ["443/udp=web,80/udp", "80/udp=new,443/udp", "443/udp=web,80/udp=new"] {
            site.watch(&mut meter, groups);
            let now = site.read(&mut meter);
            assert_eq!((now.epoch, now.total()), (first.epoch, first.total()), "{groups}");
            let names: Vec<_> = now.groups.iter().map(|reading| &reading.group).collect();
            assert_eq!(names.len(), 2, "{groups}: {names:?}");
            assert!(now.groups.iter().all(|reading| reading.watched), "{groups}");
        }
        site.exchange(false, 443, 2);
        site.drop(meter);
        // The next start gives one more, and finds what the rules say.
        let mut meter = site.start("443/udp=other,80/udp=new", true).expect("adopt");
        site.exchange(false, 443, 3);
        let last = site.read(&mut meter);
        let ten = exchanged(false, 5).plus(exchanged(false, 2)).plus(exchanged(false, 3));
        assert_eq!(lane(&last, "443/udp=other", Lane::Udp4), ten);
        assert_eq!(lane(&last, "80/udp=new", Lane::Udp6), exchanged(true, 6));
        assert_eq!((last.epoch, last.groups.len()), (first.epoch, 2));
        assert_eq!(meter.losses(), Vec::<String>::new());
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

#[test]
fn a_chain_of_our_name_that_somebody_made_is_left_alone() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        site.sh("ip6tables", "-N TRAFFIC_IN");
        site.sh("ip6tables", "-A TRAFFIC_IN -j DROP");
        let before = site.rules();
        let error = site.start("443", false).err();
        assert!(matches!(error, Some(MeterError::ForeignRules { .. })), "{error:?}");
        assert_eq!(site.rules(), before);
    }
}

#[test]
fn only_what_multi_v2ray_left_is_removed() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let before = site.rules();
        for tool in ["iptables", "ip6tables"] {
            site.sh(tool, "-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT");
            // As its own will be.
            site.sh(tool, "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT");
        }
        let admin = site.rules();
        assert_ne!(before, admin);
        for tool in ["iptables", "ip6tables"] {
            site.sh(tool, "-I INPUT -p tcp -m tcp --dport 80 -j ACCEPT");
            site.sh(tool, "-I OUTPUT -p tcp -m tcp --sport 80");
        }
        let ForeignRules { rules: found, spared } =
            site.here.ns.run(iptables::foreign).expect("look");
        assert_eq!((found.len(), spared.len()), (4, 2), "{found:?} {spared:?}");
        assert!(found.iter().all(|rule| rule.port == 80 && rule.opens.is_none()));
        let said = site.here.ns.run(|| iptables::remove_foreign(&found)).expect("remove");
        assert_eq!((said.len(), site.rules()), (4, admin));
    }
}

#[test]
fn a_thousand_groups_are_set_and_read_as_they_are() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    let list: Vec<_> = (10_000..11_000).map(|port| port.to_string()).collect();
    for site in Site::both() {
        let before = site.rules();
        let begin = Instant::now();
        let mut meter = site.start(&list.join(","), false).expect("start");
        let set = begin.elapsed();
        site.exchange(true, 10_999, 2);
        let begin = Instant::now();
        let snapshot = site.read(&mut meter);
        let name = site.backend.name();
        eprintln!("1,000 groups ({name}): set in {set:?}, read in {:?}", begin.elapsed());
        assert_eq!(snapshot.groups.len(), 1000);
        assert_eq!(lane(&snapshot, "10999", Lane::Udp6), exchanged(true, 2));
        assert_eq!(snapshot.total(), exchanged(true, 2));
        site.drop(meter);
        assert_eq!(site.rules(), before);
    }
}
