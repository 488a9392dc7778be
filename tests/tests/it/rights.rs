//! Without the rights: what is missing is named, and what others count is not said to be nothing.

use traffic_tests::{
    daemon::{Answer, Site},
    device::{connect, pair},
    leaks, need,
    netns::NetNs,
};

/// `traffic` as a user who is nobody in particular, with no right at all.
fn as_nobody(site: &Site, ns: &NetNs, args: &[&str]) -> Answer {
    let inner = site.traffic(ns, args);
    let mut outer = ns.command("setpriv");
    outer.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.stdin(std::process::Stdio::null());
    Answer::of(&mut outer)
}

#[track_caller]
fn refused(answer: &Answer, pieces: &[&str]) {
    assert_eq!(answer.code, Some(2), "{}{}", answer.stdout, answer.stderr);
    for piece in pieces {
        assert!(answer.stderr.contains(piece), "no `{piece}` in: {}", answer.stderr);
    }
}

#[test]
fn a_user_without_root_is_told_which_right_is_missing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"));
    let (site, host, other) = (Site::new(), NetNs::new(), NetNs::new());
    let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
    connect(&here, &there);
    let run = ["run", "--iface", "eth0", "--ports", "1", "--count", "1"];
    for more in [&[][..], &["--no-ledger"], &["--meter", "nft"], &["--meter", "tcx", "--persist"]] {
        let answer = as_nobody(&site, &host, &[&run[..], more].concat());
        refused(&answer, &["CAP_NET_ADMIN", "is missing", "remedy: run it as root"]);
    }
    refused(&as_nobody(&site, &host, &["clean"]), &["is missing", "remedy: run it as root"]);
    leaks::nothing(&host, &site.pins);
}

#[test]
fn counters_that_a_user_may_not_see_are_not_said_to_be_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"));
    let (site, host, other) = (Site::new(), NetNs::new(), NetNs::new());
    let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
    connect(&here, &there);
    let run = ["run", "--iface", "eth0", "--ports", "1", "--count", "1", "--persist", "--json"];
    assert_eq!(site.run(&host, &run).code, Some(0));
    for verb in ["dump", "ports"] {
        let answer = as_nobody(&site, &host, &[verb]);
        refused(&answer, &["look at the pinned maps", "CAP_DAC_READ_SEARCH", "remedy:"]);
    }
    assert_eq!(site.run(&host, &["clean"]).code, Some(0));
    leaks::nothing(&host, &site.pins);

    // Whoever has the rights to count, and asks for no pins, needs none to look at them.
    let inner = site.traffic(&host, &["run", "--iface", "eth0", "--ports", "1", "--count", "1"]);
    let mut outer = host.command("setpriv");
    outer.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let rights = "+net_admin,+cap_38,+cap_39,+dac_override";
    outer.args(["--inh-caps", rights, "--ambient-caps", rights]);
    outer.arg(inner.get_program()).args(inner.get_args()).args(["--json", "--no-ledger"]);
    let answer = Answer::of(&mut outer);
    assert_eq!(answer.json()["meter"], "tcx", "{}", answer.stderr);
}
