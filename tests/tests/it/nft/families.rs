//! Two tables, one for each version of IP: one of them gone, loaded from a listing or somebody else's, and tables
//! of our name in other families.

use traffic_tests::{need, netns::NetNs};
use traffic_user::{
    accounting::reading::{Coverage, Traffic},
    meter::{
        Before, MeterError,
        nft::{self, Installed, NftMeter},
    },
};

use super::{Host, both_ways, groups, of};

const FAMILIES: [&str; 2] = ["ip", "ip6"];

fn loaded(family: &str) -> String {
    format!(
        "the table {family} traffic was loaded from a listing, with the numbers of another time"
    )
}

/// Listings of these tables, each to take the place of what is there.
fn saved(ns: &NetNs, families: &[&str]) -> String {
    let save = |family: &&str| {
        let listing = ns.sh(&["nft", "list", "table", family, "traffic"]);
        format!("add table {family} traffic\ndelete table {family} traffic\n{listing}")
    };
    families.iter().map(save).collect()
}

#[test]
fn tables_that_were_saved_and_loaded_again_are_ours_and_begin_anew() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    host.start("5000", true);
    host.exchange(5000, 3);
    let first = host.read();
    let saved = saved(&host.here.ns, &FAMILIES);
    host.exchange(5000, 2);
    assert_eq!(of(&host.read(), "5000"), both_ways(500, 5));
    let said = FAMILIES.map(loaded);
    host.here.ns.nft(&saved);
    let second = host.read();
    assert!(second.epoch != first.epoch && second.coverage == Coverage::Gap);
    assert_eq!((of(&second, "5000"), host.losses()), (Traffic::default(), said.to_vec()));
    host.exchange(5000, 4);
    assert_eq!(of(&host.read(), "5000"), both_ways(400, 4));

    // And while nobody looks.
    host.stop();
    host.here.ns.nft(&saved);
    host.start_from("5000", true, Some(&first));
    let third = host.read();
    assert!(third.epoch != first.epoch && third.epoch != second.epoch);
    assert_eq!((of(&third, "5000"), host.losses()), (Traffic::default(), said.to_vec()));
    host.stop();
    host.here.ns.run(|| nft::clean(false)).unwrap();
    assert_eq!(host.rules(), "");
}

#[test]
fn when_one_table_is_gone_or_loaded_what_the_other_has_counted_is_not_lost() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    for (family, other_is_ipv6) in [("ip", true), ("ip6", false)] {
        for load in [false, true] {
            for running in [true, false] {
                let what = format!("{family}, loaded: {load}, running: {running}");
                let mut host = Host::new();
                // What was saved has other numbers for other groups, of an epoch that has ended.
                host.start("6000,5000", true);
                host.exchange_over(!other_is_ipv6, 5000, 9);
                host.read();
                host.stop();
                let saved = saved(&host.here.ns, &[family]);
                host.here.ns.run(|| nft::clean(false)).unwrap();

                host.start("5000,6000", true);
                host.exchange_over(false, 5000, 3);
                host.exchange_over(true, 5000, 3);
                let first = host.read();
                assert_eq!(of(&first, "5000"), both_ways(600, 6), "{what}");
                if !running {
                    host.stop();
                }
                host.exchange_over(false, 5000, 2);
                host.exchange_over(true, 5000, 4);
                let change = format!("delete table {family} traffic");
                host.here.ns.nft(if load { &saved } else { &change });
                host.exchange_over(other_is_ipv6, 5000, 1);
                if !running {
                    host.start_from("5000,6000", true, Some(&first));
                }
                let second = host.read();
                assert_ne!(second.epoch, first.epoch, "{what}");
                assert_eq!(second.coverage, Coverage::Gap, "{what}");
                let left = if other_is_ipv6 { 4 + 1 } else { 2 + 1 };
                assert_eq!(of(&second, "5000"), both_ways(left * 100, left), "{what}");
                assert_eq!(of(&second, "6000"), Traffic::default(), "{what}");
                let said =
                    if load { loaded(family) } else { format!("the table {family} traffic") };
                assert_eq!(host.losses(), [said], "{what}");

                // Both count on, and once.
                host.exchange_over(false, 5000, 1);
                host.exchange_over(true, 5000, 1);
                let third = host.read();
                assert_eq!(third.epoch, second.epoch, "{what}");
                assert_eq!(of(&third, "5000"), both_ways(left * 100 + 200, left + 2), "{what}");
                assert_eq!(host.losses(), Vec::<String>::new(), "{what}");
                host.stop();
                host.here.ns.run(|| nft::clean(false)).unwrap();
                assert_eq!(host.rules(), "", "{what}");
            }
        }
    }
}

fn foreign(error: Option<MeterError>, name: &str) {
    match error {
        Some(MeterError::ForeignRules { what, .. }) => {
            assert_eq!(what, format!("the nft table {name}"));
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_table_of_our_name_that_is_not_ours_is_left_alone() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    for family in FAMILIES {
        let host = Host::new();
        let ns = host.here.ns.clone();
        let name = format!("{family} traffic");
        ns.nft(&format!(
            "table {name} {{\nchain mine {{ type filter hook input priority 0; counter; }}\n}}\n"
        ));
        let before = host.rules();
        ns.run(|| {
            foreign(NftMeter::start(&groups("443"), true, Before::default()).err(), &name);
            foreign(Installed::open().err(), &name);
            foreign(nft::clean(false).err(), &name);
            foreign(nft::clean_port(443, false).err(), &name);
        });
        // Nothing of ours is in the other family.
        assert_eq!(host.rules(), before);
    }
}

#[test]
fn when_somebody_takes_the_place_of_one_table_the_other_goes_with_the_run() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    for family in FAMILIES {
        let mut host = Host::new();
        let name = format!("{family} traffic");
        let theirs = format!(
            "table {name} {{\nchain mine {{ type filter hook input priority 0; counter; }}\n}}\n"
        );
        host.start("5000", false);
        host.here.ns.nft(&format!("delete table {name}\n{theirs}"));
        let meter = host.meter.as_mut().expect("a meter");
        foreign(host.here.ns.run(|| meter.read()).err(), &name);
        host.stop();
        assert_eq!(host.rules().matches("table").count(), 1, "{}", host.rules());
        assert!(host.rules().contains("chain mine"), "{}", host.rules());
    }
}

#[test]
fn tables_of_our_name_of_other_families_are_neither_read_nor_touched() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    let mut host = Host::new();
    // Even with counters that are named as ours.
    let theirs = |family: &str, hook: &str| {
        format!(
            "table {family} traffic {{\ncounter g1_udp4_in {{ packets 7 bytes 700 }}\n\
             map ports_in {{ type inet_service : counter; }}\n{hook}\n}}\n"
        )
    };
    let hook = "chain mine { type filter hook input priority 0; counter name g1_udp4_in; }";
    // Behind ours in every list that the kernel gives.
    host.start("5000", true);
    host.here.ns.nft(&[theirs("inet", hook), theirs("arp", ""), theirs("bridge", "")].concat());
    let other = |host: &Host| {
        ["inet", "arp", "bridge"].map(|family| {
            let listing = host.here.ns.sh(&["nft", "-a", "list", "table", family, "traffic"]);
            // Packets pass theirs as well.
            listing.lines().filter(|line| !line.contains("packets")).collect::<String>()
        })
    };
    let before = other(&host);
    host.exchange(5000, 2);
    // All is looked at after a change of any rule, and the counters alone when there was none.
    for _ in 0..2 {
        assert_eq!(of(&host.read(), "5000"), both_ways(200, 2));
    }
    assert_eq!(host.losses(), Vec::<String>::new());
    host.here.ns.nft("flush table ip traffic");
    assert_eq!(of(&host.read(), "5000"), Traffic::default());
    host.watch("5000,6000");
    host.exchange(5000, 1);
    assert_eq!(of(&host.read(), "5000"), both_ways(100, 1));
    assert_eq!(other(&host), before);
    host.stop();
    assert_eq!(host.here.ns.run(|| nft::clean(false)).unwrap().len(), 1);
    assert_eq!(other(&host), before);
    assert_eq!(host.rules().matches("table").count(), 3, "{}", host.rules());
}
