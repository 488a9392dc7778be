//! What happened to rules while nobody looked after them: the next start sees it.

use traffic_tests::need;
use traffic_user::{
    accounting::reading::{Coverage, Lane, Snapshot, Traffic},
    meter::{
        Before,
        iptables::{self, Backend, IptablesMeter},
    },
};

use super::{Site, exchanged, lane, parse};

/// Goes on with rules that were read last when it is booked so.
fn adopt(site: &Site, groups: &str, booked: &Snapshot) -> IptablesMeter {
    let groups = parse(groups);
    let before = Before { booked: Some(booked), gap: false };
    site.here.ns.run(|| IptablesMeter::start(&groups, true, before)).expect("adopt")
}

/// What so many datagrams are in one direction.
fn one_way(ipv6: bool, input: u64, output: u64) -> Traffic {
    let whole = exchanged(ipv6, 1).input_bytes;
    Traffic {
        input_bytes: whole * input,
        input_packets: input,
        output_bytes: whole * output,
        output_packets: output,
    }
}

#[test]
fn counters_that_were_set_back_are_missed_even_when_they_are_past_what_they_were() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    let sites = Site::both();
    let cases =
        sites.iter().flat_map(|site| [(site, "iptables", false), (site, "ip6tables", true)]);
    for (site, tool, ipv6) in cases {
        if ipv6 && site.backend == Backend::Nft {
            // `ip6tables-nft` 1.8.9 makes no rule that begins above zero.
            continue;
        }
        let mut meter = site.start("443/udp", true).expect("start");
        site.exchange(false, 443, 3);
        site.exchange(true, 443, 3);
        let first = site.read(&mut meter);
        site.drop(meter);
        site.sh(tool, "-Z");
        site.exchange(ipv6, 443, 9);
        let mut meter = site.start("443/udp", true).expect("adopt");
        let second = site.read(&mut meter);
        assert_ne!(second.epoch, first.epoch, "{tool}");
        assert_eq!(second.coverage, Coverage::Gap, "{tool}");
        let (set_back, other, family) =
            if ipv6 { (Lane::Udp6, Lane::Udp4, "IPv6") } else { (Lane::Udp4, Lane::Udp6, "IPv4") };
        assert_eq!(lane(&second, "443/udp", set_back), exchanged(ipv6, 9), "{tool}");
        // What the other family had was read before.
        assert_eq!(lane(&second, "443/udp", other), Traffic::default(), "{tool}");
        assert_eq!(meter.losses(), [format!("{family}: the counters were set back")]);
        site.drop(meter);

        // Once: the next start finds them as they were left.
        let mut meter = site.start("443/udp", true).expect("adopt again");
        let third = site.read(&mut meter);
        assert_eq!((third.epoch, third.total()), (second.epoch, second.total()), "{tool}");
        assert_eq!(meter.losses(), Vec::<String>::new(), "{tool}");
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

#[test]
fn what_damaged_rules_counted_after_the_last_booking_is_not_lost() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    // Seventeen ports do not fit into one rule.
    let many = "500+502+504+506+508+510+512+514+516+518+520+522+524+526+528+530+532/udp";
    let groups = format!("443/udp,80/udp,{many}");
    for site in Site::both() {
        let mut meter = site.start(&groups, true).expect("start");
        for port in [443, 80, 500, 532] {
            site.exchange(false, port, 3);
            site.exchange(true, port, 4);
        }
        let first = site.read(&mut meter);
        site.drop(meter);
        for port in [443, 80, 500, 532] {
            site.exchange(false, port, 5);
            site.exchange(true, port, 6);
        }
        // Of IPv4 a rule for the input of 443 goes with all that it had, of IPv6 a jump.
        site.sh("iptables", "-D TRAFFIC_IN 1");
        site.sh("ip6tables", "-F OUTPUT");
        site.exchange(false, 443, 2);
        site.exchange(true, 443, 2);

        // 80 is not asked for any more, and has counted nevertheless.
        let again = format!("443/udp,{many}");
        let mut meter = adopt(&site, &again, &first);
        let second = site.read(&mut meter);
        assert_ne!(second.epoch, first.epoch);
        assert_eq!(second.coverage, Coverage::Gap);
        let want = [
            ("443/udp", one_way(false, 0, 4 + 1), one_way(true, 6 + 2, 5)),
            ("80/udp", exchanged(false, 5), exchanged(true, 6)),
            (many, one_way(false, 5 + 5, 4 + 4), one_way(true, 6 + 6, 5 + 5)),
        ];
        for (group, ipv4, ipv6) in want {
            assert_eq!(lane(&second, group, Lane::Udp4), ipv4, "{group}");
            assert_eq!(lane(&second, group, Lane::Udp6), ipv6, "{group}");
        }
        assert_eq!(
            meter.losses(),
            [
                "IPv4: 1 of 8 rules that count were gone",
                "IPv6: the jump from OUTPUT to TRAFFIC_OUT was gone"
            ]
        );
        site.drop(meter);

        // Nothing of it was booked. It is still there, once.
        let mut meter = adopt(&site, &again, &first);
        let third = site.read(&mut meter);
        assert_eq!((third.epoch, third.total()), (second.epoch, second.total()));
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

#[test]
fn counters_that_fell_below_what_was_booked_count_from_zero() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp,80/udp", true).expect("start");
        for (port, count) in [(443, 9), (80, 2)] {
            site.exchange(false, port, count);
            site.exchange(true, port, count);
        }
        let first = site.read(&mut meter);
        site.drop(meter);
        // One chain alone: the notes know nothing of it.
        site.sh("ip6tables", "-Z TRAFFIC_IN");
        site.exchange(true, 443, 3);
        site.exchange(true, 80, 3);
        let mut meter = adopt(&site, "443/udp,80/udp", &first);
        let second = site.read(&mut meter);
        assert_ne!(second.epoch, first.epoch);
        assert_eq!(lane(&second, "443/udp", Lane::Udp6), one_way(true, 3, 2));
        // It is past what it was, and so one less is seen than there were.
        assert_eq!(lane(&second, "80/udp", Lane::Udp6), one_way(true, 1, 2));
        assert_eq!(lane(&second, "80/udp", Lane::Udp4), Traffic::default());
        assert_eq!(meter.losses(), ["IPv6: the counters of 1 rules were set back"]);
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

#[test]
fn rules_without_their_notes_begin_anew_and_it_is_said() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp", true).expect("start");
        site.exchange(false, 443, 3);
        let first = site.read(&mut meter);
        site.drop(meter);
        for tool in ["iptables", "ip6tables"] {
            site.sh(tool, "-F TRAFFIC_NOTE");
        }
        let mut meter = adopt(&site, "443/udp", &first);
        site.exchange(false, 443, 2);
        let second = site.read(&mut meter);
        assert!(second.epoch != first.epoch && second.coverage == Coverage::Gap);
        assert_eq!(second.total(), exchanged(false, 2));
        assert_eq!(meter.losses(), ["the rules of TRAFFIC_NOTE were gone"]);
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

#[test]
fn what_is_seen_while_the_groups_change_is_in_the_next_reading_whatever_happens() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp", false).expect("start");
        site.exchange(false, 443, 3);
        let first = site.read(&mut meter);
        site.exchange(false, 443, 4);
        site.watch(&mut meter, "443/udp,80/udp");
        site.exchange(false, 443, 5);
        site.sh("iptables", "-F INPUT");
        site.watch(&mut meter, "443/udp");
        site.exchange(false, 443, 6);
        site.sh("iptables", "-F OUTPUT");
        let second = site.read(&mut meter);
        assert_ne!(second.epoch, first.epoch);
        let want = one_way(false, 4 + 5 + 6, 3 + 4 + 5);
        assert_eq!(lane(&second, "443/udp", Lane::Udp4), want);
        let third = site.read(&mut meter);
        assert_eq!((third.epoch, third.total()), (second.epoch, want));
        site.drop(meter);
    }
}
