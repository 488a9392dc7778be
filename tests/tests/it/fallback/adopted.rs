//! Rules that something happened to while no daemon ran: what the next one books.

use traffic_tests::{
    daemon::{Answer, Site},
    document::Traffic,
    leaks, need,
};
use traffic_user::{
    accounting::{reading::Coverage, subject::Subject, usage::Span},
    ledger::Reader,
};

use super::{DATAGRAM4, DATAGRAM6, Lab, needs, run};

const ARGS: [&str; 3] = ["--ports", "5000/udp,6000/udp", "--persist"];

/// Datagrams over both versions of IP.
const fn datagrams(ipv4: u64, ipv6: u64) -> Traffic {
    Traffic::input(ipv4 * DATAGRAM4 + ipv6 * DATAGRAM6, ipv4 + ipv6)
}

fn reader(site: &Site) -> Reader {
    Reader::open(&site.state).expect("open the ledger").expect("a ledger")
}

/// All that the ledger has of a port, and whether that is all there was.
fn booked(site: &Site, group: &str) -> (Traffic, Coverage) {
    let group = Subject::group(&group.parse().expect("a group"));
    let totals = reader(site).totals(&group).expect("ask the ledger");
    let [usage] = totals.as_slice() else { panic!("{totals:?}") };
    assert_eq!(usage.traffic.output_packets, 0);
    (Traffic::input(usage.traffic.input_bytes, usage.traffic.input_packets), usage.coverage)
}

/// What was said of rules that were lost.
fn losses(site: &Site) -> Vec<String> {
    let events = reader(site).events(Span::ALL, usize::MAX).expect("ask the ledger");
    let lost = events.into_iter().filter(|event| event.kind == "rules-lost");
    lost.map(|event| event.what).collect()
}

#[test]
fn counters_that_were_set_back_count_from_there_and_nothing_is_booked_twice() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    let daemon = run(&site, &lab, "iptables", &ARGS);
    lab.send(false, 5000, 3);
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), (datagrams(3, 0), Coverage::Complete));
    lab.send(true, 5000, 2);
    lab.sh("iptables-nft -Z");
    // More than before: that a number fell cannot be seen.
    lab.send(false, 5000, 9);
    let mut daemon = run(&site, &lab, "iptables", &ARGS);
    daemon.says("the counters were set back");
    lab.send(false, 5000, 1);
    let after = daemon.fresh();
    assert_eq!(after.text("coverage"), "gap");
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), (datagrams(3 + 9 + 1, 2), Coverage::Gap));
    let want = "iptables: rules were gone and are put back: IPv4: the counters were set back";
    assert_eq!(losses(&site), [want]);
    site.run(&lab.host, &["clean"]);
    leaks::nothing(&lab.host, &site.pins);
}

#[test]
fn what_is_left_of_damaged_rules_has_counted_for_the_ledger() {
    needs!();
    let damages = [
        ("nft", "nft flush chain ip traffic input", "1 of 1 rules in the chain ip traffic input"),
        (
            "nft",
            "nft delete element ip traffic ports_in { udp . 5000 }",
            "1 of 2 entries in the map ip traffic ports_in",
        ),
        ("iptables", "iptables-nft -D INPUT 1", "the jump from INPUT to TRAFFIC_IN was gone"),
    ];
    for (meter, damage, said) in damages {
        let (site, lab) = (Site::new(), Lab::new());
        let daemon = run(&site, &lab, meter, &ARGS);
        lab.send(false, 5000, 3);
        daemon.stop();
        lab.send(false, 5000, 4);
        lab.send(true, 5000, 5);
        lab.send(false, 6000, 6);
        lab.sh(damage);
        lab.send(false, 5000, 7);
        // Killed before it has booked anything, and again.
        for said in [said, ""] {
            let mut command = site.traffic(&lab.host, &["run", "--no-proxy", "--meter", meter]);
            let ended = Answer::of(command.args(ARGS).env("TRAFFIC_FAULT", "ledger-commit"));
            assert_eq!(ended.code, None, "{damage}: {}", ended.stderr);
            assert!(ended.stderr.contains(said), "{damage}: {}", ended.stderr);
        }
        let daemon = run(&site, &lab, meter, &ARGS);
        lab.send(false, 5000, 8);
        daemon.stop();
        let (of_5000, coverage) = booked(&site, "5000/udp");
        assert_eq!((of_5000, coverage), (datagrams(3 + 4 + 8, 5), Coverage::Gap), "{damage}");
        assert_eq!(booked(&site, "6000/udp").0, datagrams(6, 0), "{damage}");
        site.run(&lab.host, &["clean"]);
    }
}
