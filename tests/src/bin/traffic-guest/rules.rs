//! The fallback on other kernels: rules of nftables and iptables count exactly, are put back, and go.

use traffic_tests::{
    daemon::{Daemon, Site},
    document::Traffic,
    netns::NetNs,
    wait,
};

use crate::{
    load::{self, Datagrams},
    pair::{Pair, WATCHED, assert_counted},
};

/// Payloads that travel in one packet: rules count buffers.
const SIZES: [usize; 5] = [0, 1, 100, 1000, 1400];

fn count(pair: &Pair, site: &Site, meter: &str, more: &[&str]) -> Daemon {
    let mut args = vec!["--ports", WATCHED, "--meter", meter];
    args.extend(more);
    let mut daemon = site.start(&pair.server.ns, &args);
    daemon
        .wait_for("its first document", |document| (document.text("meter") == meter).then_some(()));
    daemon
}

fn some(pair: &Pair, ipv6: bool) -> Traffic {
    load::udp((&pair.server, &pair.client), ipv6, &SIZES, Datagrams::Whole)
}

fn run(ns: &NetNs, words: &str) -> String {
    let mut words = words.split(' ');
    let tool = words.next().expect("a tool");
    let output = ns.command(tool).args(words).output().expect("start a tool");
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How often our names stand in what the tool lists, by version of IP.
fn ours(pair: &Pair, meter: &str) -> [usize; 2] {
    let ns = &pair.server.ns;
    match meter {
        "nft" => {
            let rules = run(ns, "nft list ruleset");
            ["table ip traffic", "table ip6 traffic"].map(|table| rules.matches(table).count())
        }
        _ => ["iptables-legacy-save", "ip6tables-legacy-save"]
            .map(|save| run(ns, save).matches("TRAFFIC").count()),
    }
}

/// Whether something of ours counts in both versions. A flush of iptables leaves empty chains.
fn count_in_both(pair: &Pair, meter: &str) -> bool {
    let ns = &pair.server.ns;
    match meter {
        "nft" => ours(pair, meter).into_iter().all(|found| found > 0),
        _ => ["iptables-legacy-save", "ip6tables-legacy-save"]
            .into_iter()
            .all(|save| run(ns, save).contains("-j TRAFFIC")),
    }
}

/// Both families are exact, and after a signal nothing is left.
pub(crate) fn exact(meter: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let daemon = count(&pair, &site, meter, &[]);
    assert!(count_in_both(&pair, meter));
    let sent = [some(&pair, false), some(&pair, true)];
    let seen = daemon.stop();
    assert_counted(&seen, meter, &[("udp4", sent[0]), ("udp6", sent[1])]);
    assert_eq!(ours(&pair, meter), [0, 0], "rules are left");
}

/// A flush begins a new epoch, and counting goes on.
pub(crate) fn vanish(meter: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    let mut daemon = count(&pair, &site, meter, &[]);
    some(&pair, false);
    let epoch = daemon.fresh().text("epoch").to_owned();
    let flushes: &[&str] = match meter {
        "nft" => &["nft flush ruleset"],
        _ => &["iptables-legacy -F", "ip6tables-legacy -F"],
    };
    for flush in flushes {
        run(&pair.server.ns, flush);
    }
    daemon.wait_for("a new epoch", |document| (document.text("epoch") != epoch).then_some(()));
    // A tick may lie between the two flushes; then the second one begins another epoch.
    wait::until("all rules", || count_in_both(&pair, meter).then_some(()));
    let sent = some(&pair, true);
    let seen = daemon.stop();
    assert_eq!(seen.text("coverage"), "gap");
    assert_eq!(seen.lane(WATCHED, "udp6"), sent);
}

/// Rules that persist count without a daemon, are adopted, and `traffic clean` takes them off.
pub(crate) fn persist(meter: &str) {
    let (pair, site) = (Pair::new(), Site::new());
    count(&pair, &site, meter, &["--persist"]).kill();
    let before = some(&pair, false);
    let daemon = count(&pair, &site, meter, &["--persist"]);
    let sent = before + some(&pair, false);
    assert_counted(&daemon.stop(), meter, &[("udp4", sent)]);
    site.run(&pair.server.ns, &["clean", "--json"]).json();
    assert_eq!(ours(&pair, meter), [0, 0], "rules are left");
}
