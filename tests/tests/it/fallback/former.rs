//! The table `inet traffic` that builds before 2026-11-30 set: the next run of any kind takes it off and books
//! what it counted, and so does `traffic clean` without the booking.

use traffic_tests::{daemon::Site, document::Traffic, leaks, need};
use traffic_user::{
    accounting::{reading::Coverage, subject::Subject, usage::Span},
    ledger::Reader,
};

use super::{DATAGRAM4, DATAGRAM6, Lab, needs, run};

const ARGS: [&str; 5] = ["--ports", "5000/udp", "--iface", "eth0", "--persist"];

fn list(lab: &Lab, family: &str) -> String {
    let mut command = lab.host.command(need::tool("nft").expect("it was asked for"));
    let output = command.args(["list", "table", family, "traffic"]).output().expect("list a table");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes of the tables of today the one that they would have been, with the same numbers and epoch.
fn go_back(lab: &Lab, persist: bool) {
    let (ip, ip6) = (list(lab, "ip"), list(lab, "ip6"));
    let mut text = "delete table ip traffic\ndelete table ip6 traffic\ntable inet traffic {\n\
         comment \"traffic: counts ports, decides nothing\"\n"
        .to_owned();
    for listing in [&ip, &ip6] {
        let lines: Vec<_> = listing.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0].starts_with("counter g")) {
            text += &format!("{} {} }}\n", pair[0], pair[1]);
        }
    }
    for (chain, side, way, priority) in
        [("input", "dport", "in", "-300"), ("output", "sport", "out", "300")]
    {
        text += &format!(
            "map ports_{way} {{ type inet_proto . nf_proto . inet_service : counter; size 4096; \
             elements = {{ udp . ipv4 . 5000 : \"g1_udp4_{way}\", \
             udp . ipv6 . 5000 : \"g1_udp6_{way}\" }}\n}}\n\
             chain {chain} {{ type filter hook {chain} priority {priority};\n\
             counter name meta l4proto . meta nfproto . th {side} map @ports_{way}\n}}\n"
        );
    }
    text += "chain about {\n";
    for note in ip.lines().filter(|line| line.contains("continue comment")) {
        // After epoch, begin and boot.
        let note = if persist { note.to_owned() } else { note.replace(" 1 0 ", " 0 0 ") };
        text += &format!("{note}\n");
    }
    text += "meta l4proto tcp meta nfproto ipv4 th dport 1 continue\n}\n}\n";
    lab.host.nft(&text);
}

/// A host on which an earlier build has booked some, and whose table has counted more since.
fn upgraded(persist: bool) -> (Site, Lab) {
    let (site, lab) = (Site::new(), Lab::new());
    let daemon = run(&site, &lab, "nft", &ARGS);
    lab.send(false, 5000, 3);
    lab.send(true, 5000, 2);
    daemon.stop();
    go_back(&lab, persist);
    lab.send(false, 5000, 4);
    lab.send(true, 5000, 5);
    (site, lab)
}

const fn datagrams(ipv4: u64, ipv6: u64) -> Traffic {
    Traffic::input(ipv4 * DATAGRAM4 + ipv6 * DATAGRAM6, ipv4 + ipv6)
}

/// What the ledger has of the port by layer, and kinds of events.
fn booked(site: &Site) -> (Vec<(&'static str, Traffic, Coverage)>, Vec<String>) {
    let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    let group = Subject::group(&"5000/udp".parse().expect("a group"));
    let totals = reader.totals(&group).expect("ask the ledger");
    let mut all: Vec<_> = totals
        .iter()
        .map(|usage| {
            let counted = Traffic::input(usage.traffic.input_bytes, usage.traffic.input_packets);
            (usage.layer.name(), counted, usage.coverage)
        })
        .collect();
    all.sort_unstable_by_key(|(layer, ..)| *layer);
    let events = reader.events(Span::ALL, usize::MAX).expect("ask the ledger");
    (all, events.into_iter().map(|event| event.kind).collect())
}

#[test]
fn a_table_of_an_earlier_build_gives_way_to_any_meter_and_what_it_counted_is_booked() {
    needs!();
    need!(Bpf, Object, Tool("tc"));
    for (next, persist) in
        [("nft", true), ("nft", false), ("iptables", true), ("tcx", true), ("tcx", false)]
    {
        let (site, lab) = upgraded(persist);
        let dump = site.run(&lab.host, &["iptables", "--json"]).json();
        assert_eq!(super::port(&dump, "5000"), datagrams(7, 7), "{next}");
        // What was left to go on is for a run that persists.
        let args = if persist { &ARGS[..] } else { &ARGS[..4] };
        let mut daemon = run(&site, &lab, next, args);
        daemon.says("the nft table inet traffic of an earlier version is taken off");
        assert!(!lab.rules().contains("inet traffic"), "{next}: {}", lab.rules());
        lab.send(false, 5000, 6);
        lab.send(true, 5000, 1);
        daemon.fresh();
        daemon.stop();
        let complete = Coverage::Complete;
        let want = match next {
            "tcx" => vec![("l3", datagrams(6, 1), complete), ("l3-skb", datagrams(7, 7), complete)],
            _ => vec![("l3-skb", datagrams(7 + 6, 7 + 1), complete)],
        };
        assert_eq!(booked(&site), (want, vec!["meter-changed".to_owned()]), "{next}, {persist}");
        site.run(&lab.host, &["clean"]);
        leaks::nothing(&lab.host, &site.pins);
    }
}

#[test]
fn a_run_that_does_not_persist_leaves_a_table_alone_that_is_to_go_on() {
    needs!();
    let (site, lab) = upgraded(true);
    let before = lab.rules();
    let args = ["run", "--no-proxy", "--count", "1", "--ports", "5000/udp", "--meter", "nft"];
    let answer = site.run(&lab.host, &args);
    assert_eq!(answer.code, Some(2), "{}", answer.stdout);
    let said = "the nft table inet traffic go on counting";
    assert!(answer.stderr.contains(said), "{}", answer.stderr);
    assert_eq!(lab.rules(), before);

    let clean = site.run(&lab.host, &["clean"]);
    assert_eq!(clean.code, Some(0), "{}", clean.stderr);
    let said = "nft table inet traffic of an earlier version (1 groups, 4 counters)";
    assert!(clean.stdout.contains(said), "{}", clean.stdout);
    assert!(!lab.rules().contains("inet traffic"), "{}", lab.rules());
}

#[test]
fn a_table_of_an_earlier_build_with_something_of_somebody_else_is_named_and_stays() {
    needs!();
    let (site, lab) = upgraded(true);
    lab.sh("nft add chain inet traffic mine");
    let before = lab.rules();
    let args =
        ["run", "--no-proxy", "--count", "1", "--ports", "5000/udp", "--meter", "nft", "--persist"];
    for verb in [&args[..], &["clean"]] {
        let answer = site.run(&lab.host, verb);
        assert_eq!(answer.code, Some(2), "{}", answer.stdout);
        let said = "the nft table inet traffic has our name and is not ours";
        assert!(answer.stderr.contains(said), "{}", answer.stderr);
        assert!(answer.stderr.contains("the chain mine"), "{}", answer.stderr);
    }
    assert_eq!(lab.rules(), before);
}
