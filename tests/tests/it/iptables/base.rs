//! The table and the chains that `iptables-nft` makes for the first rule in them go with ours, where nobody
//! had them before and nobody has anything in them.

use traffic_tests::{need, netns::NetNs};
use traffic_user::meter::{
    Before,
    iptables::{self, Backend, IptablesMeter},
};

use super::parse;

/// A table of the administrator, with a chain that `iptables` does not know.
const OF_AN_ADMIN: &str = "table ip filter { chain mine { type filter hook input priority 5; tcp dport 1 counter drop; }; }";

/// Rules are set here; counting with a legacy table would be another back end.
fn start(ns: &NetNs, persist: bool) -> IptablesMeter {
    let groups = parse("443,20000-20100/udp");
    let meter = ns.run(|| IptablesMeter::start(&groups, persist, Before::default()));
    let meter = meter.expect("start the meter");
    assert_eq!(meter.backend(), Backend::Nft);
    meter
}

fn set(ns: &NetNs, rules: &str) {
    if !rules.is_empty() {
        ns.sh(&["nft", rules]);
    }
}

fn all(ns: &NetNs) -> String {
    ns.sh(&["nft", "list", "ruleset"])
}

#[test]
fn what_came_with_our_rules_goes_with_them() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-nft"), Tool("nft"));
    for theirs in ["", "table ip filter {}", OF_AN_ADMIN] {
        let ns = NetNs::new();
        set(&ns, theirs);
        let before = all(&ns);

        let mut meter = start(&ns, false);
        ns.run(|| meter.read()).expect("read");
        assert!(all(&ns).contains("chain INPUT"), "{theirs}");
        ns.run(move || drop(meter));
        assert_eq!(all(&ns), before, "{theirs}: with the value");

        let meter = start(&ns, true);
        ns.run(move || drop(meter));
        let said = ns.run(|| iptables::clean(true)).expect("look");
        let named = said.iter().filter(|line| line.contains("the chain INPUT in the IPv")).count();
        assert_eq!(named, 2, "{said:?}");
        assert_eq!(ns.run(|| iptables::clean(false)).expect("clean"), said);
        assert_eq!(all(&ns), before, "{theirs}: by clean");

        let meter = start(&ns, true);
        ns.run(move || drop(meter));
        // Taken over, flushed and put back by another start: the notes are new, and say the same.
        let mut meter = start(&ns, true);
        ns.run(|| meter.watch(&parse("443"))).expect("watch");
        ns.sh(&["nft", "flush", "ruleset"]);
        set(&ns, theirs);
        ns.run(|| meter.read()).expect("read");
        assert!(!meter.losses().is_empty());
        ns.run(move || drop(meter));
        ns.run(|| iptables::clean_port(443, false)).expect("clean");
        assert_eq!(all(&ns), before, "{theirs}: by the last port");
    }
}

#[test]
fn what_somebody_put_into_them_since_stays() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-nft"), Tool("nft"));
    let ns = NetNs::new();
    let meter = start(&ns, false);
    ns.sh(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"]);
    ns.sh(&["ip6tables-nft", "-P", "OUTPUT", "DROP"]);
    ns.run(move || drop(meter));
    let left = all(&ns);
    assert!(!left.contains("TRAFFIC"), "{left}");
    let chains: Vec<&str> =
        left.lines().filter(|line| line.ends_with('{')).map(str::trim).collect();
    let wanted = ["table ip filter {", "chain INPUT {", "table ip6 filter {", "chain OUTPUT {"];
    assert_eq!(chains, wanted, "{left}");
    assert!(left.contains("tcp dport 22") && left.contains("policy drop"), "{left}");
}

#[test]
fn what_somebody_made_anew_in_the_place_of_them_stays() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-nft"), Tool("nft"));
    let ns = NetNs::new();
    let mut meter = start(&ns, false);
    ns.sh(&["nft", "flush", "ruleset"]);
    let theirs = "table ip filter { chain INPUT { type filter hook input priority 0; }; }";
    ns.sh(&["nft", theirs]);
    let before = all(&ns);
    ns.run(|| meter.read()).expect("read");
    ns.run(move || drop(meter));
    assert_eq!(all(&ns), before);
}
