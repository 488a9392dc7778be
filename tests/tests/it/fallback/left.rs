//! Rules that a killed run left: the next one of the same kind goes on with them, one of another takes them
//! off, and nothing that is to go on.

use traffic_tests::{daemon::Site, document::Traffic, leaks, need};
use traffic_user::{
    accounting::{subject::Subject, usage::Span},
    ledger::Reader,
};

use super::{DATAGRAM4, Lab, METERS, needs, run};

const ARGS: [&str; 4] = ["--ports", "5000/udp", "--iface", "eth0"];

/// Packets that the ledger has of the port, by layer, and how often the meter changed.
fn booked(site: &Site) -> (Vec<(&'static str, u64)>, usize) {
    let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    let group = Subject::group(&"5000/udp".parse().expect("a group"));
    let totals = reader.totals(&group).expect("ask the ledger");
    let mut packets: Vec<_> =
        totals.iter().map(|usage| (usage.layer.name(), usage.traffic.input_packets)).collect();
    packets.sort_unstable();
    let events = reader.events(Span::ALL, usize::MAX).expect("ask the ledger");
    (packets, events.iter().filter(|event| event.kind == "meter-changed").count())
}

#[test]
fn what_a_killed_run_left_goes_with_the_next_and_its_last_numbers_are_booked() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    for (killed, next) in
        [("nft", "tcx"), ("nft", "iptables"), ("iptables", "nft"), ("iptables", "tcx")]
    {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let mut daemon = run(&site, &lab, killed, &ARGS);
        lab.send(false, 5000, 3);
        daemon.fresh();
        daemon.kill();
        let left = lab.rules();
        assert_ne!(left, before, "{killed}");
        lab.send(false, 5000, 2);
        let mut daemon = run(&site, &lab, next, &ARGS);
        daemon.says("another meter");
        if next == "tcx" {
            assert_eq!(lab.rules(), before, "{killed} is still there beside {next}");
        }
        lab.send(false, 5000, 4);
        daemon.fresh();
        daemon.stop();
        leaks::nothing(&lab.host, &site.pins);
        assert_eq!(lab.rules(), before, "{killed}, {next}");
        let layers = match next {
            "tcx" => vec![("l3", 4), ("l3-skb", 3 + 2)],
            _ => vec![("l3-skb", 3 + 2 + 4)],
        };
        assert_eq!(booked(&site), (layers, 1), "{killed}, {next}");
    }
}

#[test]
fn a_killed_run_is_gone_on_with_by_the_next_of_the_same_kind() {
    needs!();
    let others = ["--ports", "6000/udp", "--iface", "eth0"];
    let persist = [&ARGS[..], &["--persist"]].concat();
    for meter in METERS {
        for (next, of_5000) in
            [(&ARGS[..], 3 + 30 + 2), (&persist[..], 3 + 30 + 2), (&others[..], 3 + 30)]
        {
            let (site, lab) = (Site::new(), Lab::new());
            let before = lab.rules();
            let mut daemon = run(&site, &lab, meter, &ARGS);
            lab.send(false, 5000, 3);
            let first = daemon.fresh();
            daemon.kill();
            lab.send(false, 5000, 30);
            let mut daemon = run(&site, &lab, meter, next);
            lab.send(false, 5000, 2);
            let document = daemon.fresh();
            assert_eq!(document.text("epoch"), first.text("epoch"), "{meter} {next:?}");
            assert_eq!(document.text("coverage"), "complete", "{meter} {next:?}");
            daemon.stop();
            assert_eq!(booked(&site), (vec![("l3-skb", of_5000)], 0), "{meter} {next:?}");
            if next.contains(&"--persist") {
                let dump = site.run(&lab.host, &["dump", "--json"]).json();
                assert_eq!(dump["epoch"], first.text("epoch"), "{meter}: they go on");
                let refused =
                    site.run(&lab.host, &["run", "--no-proxy", "--meter", meter, "--count", "1"]);
                assert_eq!(refused.code, Some(2), "{meter}: {}", refused.stderr);
                site.run(&lab.host, &["clean"]);
            }
            assert_eq!(lab.rules(), before, "{meter} {next:?}");
        }
    }
}

#[test]
fn what_was_left_to_go_on_is_not_touched_by_a_run_that_does_not_persist() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    let persist = [&ARGS[..], &["--persist"]].concat();
    for (meter, beside) in
        [("nft", "tcx"), ("nft", "iptables"), ("iptables", "nft"), ("iptables", "tcx")]
    {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let first = run(&site, &lab, meter, &persist).stop();
        lab.send(false, 5000, 3);
        let mut other = run(&site, &lab, beside, &ARGS);
        lab.send(false, 5000, 2);
        other.fresh();
        assert!(!other.messages().contains("another meter"), "{}", other.messages());
        other.kill();

        // That one was killed as well: it goes, and the other goes on.
        let mut daemon = run(&site, &lab, meter, &persist);
        let document = daemon.fresh();
        assert_eq!(document.text("epoch"), first.text("epoch"), "{meter} beside {beside}");
        assert_eq!(document.group("5000"), Traffic::input(5 * DATAGRAM4, 5), "{meter}, {beside}");
        daemon.stop();
        site.run(&lab.host, &["clean"]);
        assert_eq!(lab.rules(), before, "{meter}, {beside}");
    }
}

#[test]
fn rules_of_an_earlier_boot_are_nobodys() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    let persist = [&ARGS[..], &["--persist"]].concat();
    for (meter, next) in
        [("nft", "nft"), ("nft", "tcx"), ("iptables", "iptables"), ("iptables", "tcx")]
    {
        let (site, lab) = (Site::new(), Lab::new());
        let before = lab.rules();
        let first = run(&site, &lab, meter, &persist).stop();
        lab.send(false, 5000, 3);
        // As a service does it that saves the rules of the host and loads them after a boot.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let another = format!("sed s/{boot}/00000000000000aa/");
        match meter {
            "nft" => lab.sh(&format!(
                "for f in ip ip6; do t=\"table $f traffic\"; echo delete $t; nft list $t; done | {another} | nft -f -"
            )),
            _ => lab.sh(&format!(
                "for t in iptables-nft ip6tables-nft; do $t-save -c | {another} | $t-restore -c; done"
            )),
        }
        let dump = site.run(&lab.host, &["dump"]);
        assert_eq!(dump.code, Some(2), "{meter}: {}", dump.stdout);
        let mut daemon = run(&site, &lab, next, &ARGS);
        let document = daemon.fresh();
        assert_ne!(document.text("epoch"), first.text("epoch"), "{meter}, {next}");
        assert_eq!(document.group("5000"), Traffic::default(), "{meter}, {next}");
        daemon.stop();
        let gone = |rules: &str| !rules.contains("TRAFFIC") && !rules.contains("traffic {");
        assert!(gone(&lab.rules()), "{meter}, {next}: {}\n{before}", lab.rules());
        leaks::nothing(&lab.host, &site.pins);
    }
}

/// What the ledger tells of what was missed.
fn gaps(site: &Site) -> Vec<String> {
    let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    let events = reader.events(Span::ALL, usize::MAX).expect("ask the ledger");
    events.into_iter().filter(|event| event.kind == "gap").map(|event| event.what).collect()
}

#[test]
fn what_was_left_to_go_on_and_is_gone_is_said() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    let persist = [&ARGS[..], &["--persist"]].concat();
    let flush = "nft flush ruleset";
    for (meter, next) in
        [("nft", "nft"), ("iptables", "iptables"), ("tcx", "tcx"), ("nft", "tcx"), ("tcx", "nft")]
    {
        let what = format!("{meter}, {next}");
        let (site, lab) = (Site::new(), Lab::new());
        run(&site, &lab, meter, &persist).stop();
        let again = run(&site, &lab, meter, &persist).stop();
        assert_eq!(again.text("coverage"), "complete", "{what}: it is there");
        assert_eq!(gaps(&site), [""; 0], "{what}");
        if meter == "tcx" {
            std::fs::remove_dir_all(&site.pins).expect("remove the pins");
        } else {
            lab.sh(flush);
        }
        lab.send(false, 5000, 2);
        let mut daemon = run(&site, &lab, next, &persist);
        daemon.says(&format!("{meter}: what was left to count is gone"));
        lab.send(false, 5000, 4);
        assert_eq!(daemon.fresh().text("coverage"), "gap", "{what}");
        daemon.stop();
        let told = gaps(&site);
        assert_eq!(told.len(), 1, "{what}: {told:?}");
        assert!(told[0].contains("is not known"), "{what}: {told:?}");
        let (packets, _) = booked(&site);
        let counted: u64 = packets.iter().map(|(_, packets)| packets).sum();
        assert_eq!(counted, 4, "{what}: nobody saw the others");
        let dump = site.run(&lab.host, &["dump", "--json"]).json();
        assert_eq!(dump["coverage"], "gap", "{what}: it is said as long as they count");

        // The next one finds what this one left.
        let mut daemon = run(&site, &lab, next, &persist);
        daemon.fresh();
        assert!(!daemon.messages().contains("is gone"), "{what}: {}", daemon.messages());
        daemon.stop();
        assert_eq!(gaps(&site).len(), 1, "{what}");
        site.run(&lab.host, &["clean"]);
    }
}

#[test]
fn what_went_with_its_run_is_not_missed() {
    needs!();
    let (site, lab) = (Site::new(), Lab::new());
    run(&site, &lab, "nft", &ARGS).stop();
    let mut daemon = run(&site, &lab, "nft", &ARGS);
    assert_eq!(daemon.fresh().text("coverage"), "complete");
    assert!(!daemon.messages().contains("is gone"), "{}", daemon.messages());
    daemon.stop();
    assert_eq!(gaps(&site), [""; 0]);
}
