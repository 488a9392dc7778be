//! Any rules of others stay as they are, with their order and their counters.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use traffic_tests::{load, need, netns::NetNs};
use traffic_user::meter::{
    Before,
    iptables::{self, Backend, IptablesMeter},
};

use super::{listed, parse};

/// Ports to which something is sent before, so that some rules have counted.
const PORTS: [u16; 3] = [22, 443, 5000];

fn rule() -> impl Strategy<Value = String> {
    let port = prop_oneof![Just(22), Just(443), Just(5000), 1u16..u16::MAX];
    let what = prop_oneof![
        port.clone().prop_map(|port| format!("-p udp -m udp --dport {port}")),
        port.prop_map(|port| format!("-p tcp -m tcp --sport {port}")),
        (1u16..1000, 1000u16..u16::MAX)
            .prop_map(|(a, b)| format!("-p udp -m multiport --dports {a},{b},22:500")),
        Just("-m comment --comment \"traffic v=1 \\\"x\\\" of an admin\"".to_owned()),
        Just("-i lo".to_owned()),
        Just("-m limit --limit 3/sec".to_owned()),
    ];
    let target = prop_oneof![
        Just(String::new()),
        Just(" -j ACCEPT".to_owned()),
        Just(" -j RETURN".to_owned()),
        Just(" -j THEIRS".to_owned()),
    ];
    (what, target).prop_map(|(what, target)| what + &target)
}

/// Chain and rule; nothing is dropped, or what shall be counted would not arrive.
fn rules() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let chain = prop_oneof![Just("INPUT"), Just("OUTPUT"), Just("FORWARD")];
    proptest::collection::vec((chain, rule()), 0..12)
}

/// A whole set for `iptables-restore`.
fn written(rules: &[(&str, String)]) -> String {
    let mut text = ":THEIRS - [0:0]\n-A THEIRS -m comment --comment 443/udp\n".to_owned();
    for (chain, rule) in rules {
        // A chain of INPUT alone cannot be left by an interface of output, so those go there.
        let chain = if rule.starts_with("-i") { "INPUT" } else { chain };
        text += &format!("-A {chain} {rule}\n");
    }
    format!("*filter\n{text}COMMIT\n")
}

fn restore(ns: &NetNs, tool: &str, backend: Backend, text: &str) {
    let program = format!("{tool}-{}-restore", backend.name());
    ns.sh(&["sh", "-c", &format!("printf '%s' \"$0\" | {program} --noflush -w 20"), text]);
}

#[test]
fn any_rules_of_others_stay_byte_for_byte_as_they_are() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"), Tool("nft"));
    for backend in Backend::ALL {
        let config = Config { cases: 10, failure_persistence: None, ..Config::default() };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let result = runner.run(&(rules(), rules()), |(four, six)| {
            let ns = NetNs::new();
            restore(&ns, "iptables", backend, &written(&four));
            restore(&ns, "ip6tables", backend, &written(&six));
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                let from = load::udp_at(&ns, (ip, 40_000).into());
                for port in PORTS {
                    load::datagram(&from, &load::udp_at(&ns, (ip, port).into()), 72);
                }
            }
            let list = || ["iptables", "ip6tables"].map(|tool| listed(&ns, tool, backend)).concat();
            // Whether a chain without rules is there is not in the list of iptables.
            let everything = || ns.sh(&["nft", "list", "ruleset"]);
            let theirs = || -> String {
                let list = list();
                let lines = list.lines().filter(|line| !line.contains("TRAFFIC_"));
                lines.map(|line| format!("{line}\n")).collect()
            };
            let (before, all_before) = (list(), everything());
            let mut meter = ns
                .run(|| {
                    IptablesMeter::start(&parse("443,20000-20100/udp"), true, Before::default())
                })
                .unwrap();
            prop_assert_eq!(meter.backend(), backend);
            prop_assert!(list() != before);
            prop_assert_eq!(&theirs(), &before);
            ns.run(|| meter.watch(&parse("443,8443/tcp,5000+22=\"x\""))).unwrap();
            prop_assert_eq!(&theirs(), &before);
            // Half of ours go, and are put back.
            ns.sh(&[&format!("ip6tables-{}", backend.name()), "-w", "20", "-F", "TRAFFIC_IN"]);
            ns.run(|| meter.read()).unwrap();
            prop_assert_eq!(meter.losses().len(), 1);
            prop_assert_eq!(&theirs(), &before);
            ns.run(move || drop(meter));
            ns.run(|| iptables::clean_port(443, false)).unwrap();
            prop_assert_eq!(&theirs(), &before);
            ns.run(|| iptables::clean(false)).unwrap();
            prop_assert_eq!(list(), before);
            prop_assert_eq!(everything(), all_before);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{}: {error}", backend.name()));
    }
}
