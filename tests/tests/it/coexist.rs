//! Programs of others on the same hooks: they keep working before, during and after ours, and ours
//! counts every packet.

use traffic_tests::{
    daemon::Site,
    device::{Device, veth},
    document::Traffic,
    leaks, load, need,
    neighbour::{Neighbour, Order, Side, verdict},
    netns::NetNs,
    wait,
};

const PORT: u16 = 5000;
/// Payload of the datagrams, and what they are with their headers.
const PAYLOAD: usize = 72;
const WHOLE: u64 = 100;

/// A host that answers every datagram, and somebody who sends them.
struct Pair {
    here: Device,
    there: Device,
    server: std::net::UdpSocket,
    client: std::net::UdpSocket,
}

impl Pair {
    fn new() -> Self {
        // Every packet that another program sees shall be one of the test's.
        let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        let server = load::udp(&here, false, PORT);
        let client = load::udp(&there, false, 40_000);
        Self { here, there, server, client }
    }

    /// So many datagrams in, and as many out.
    fn exchange(&self, count: u64) {
        for _ in 0..count {
            load::datagram(&self.client, &self.server, PAYLOAD);
            load::datagram(&self.server, &self.client, PAYLOAD);
        }
    }

    fn attached(&self) -> Vec<String> {
        leaks::attached(&self.here.ns)
    }
}

fn both_ways(count: u64) -> Traffic {
    Traffic::input(WHOLE * count, count) + Traffic::output(WHOLE * count, count)
}

#[test]
fn tcx_programs_of_others_before_and_after_ours_see_every_packet() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let programs: Vec<Neighbour> =
        [verdict::UNSPEC, verdict::OK, verdict::OK].into_iter().map(Neighbour::new).collect();
    let [before, after, out] = programs.as_slice() else {
        unreachable!("three were made");
    };
    // There first, and it ends the chain: ours goes in front of it.
    let _after = after.tcx(&pair.here, Side::Input, Order::Last);
    let _out = out.tcx(&pair.here, Side::Output, Order::First);
    let site = Site::new();
    let args = ["--iface", "eth0", "--meter", "tcx", "--ports", "5000"];
    let mut daemon = site.start(&pair.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    // Comes later and puts itself in front of ours.
    let _before = before.tcx(&pair.here, Side::Input, Order::First);
    assert_eq!(
        pair.attached(),
        [
            "eth0 in tcx neighbour",
            "eth0 in tcx neighbour",
            "eth0 in tcx traffic_eth_in",
            "eth0 out tcx neighbour",
            "eth0 out tcx traffic_eth_out",
        ]
    );
    let start: Vec<u64> = programs.iter().map(Neighbour::seen).collect();

    pair.exchange(500);
    let document = daemon.stop();
    assert_eq!(document.lane("5000", "udp4"), both_ways(500));
    for (program, start) in programs.iter().zip(start) {
        assert_eq!(program.seen() - start, 500);
    }
    assert_eq!(
        pair.attached(),
        ["eth0 in tcx neighbour", "eth0 in tcx neighbour", "eth0 out tcx neighbour",]
    );
    pair.exchange(10);
    assert_eq!(after.seen(), 510);
}

#[test]
fn a_packet_that_another_program_drops_is_counted_and_stays_dropped() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let pair = Pair::new();
        pair.here.ns.sh(&["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
        let mut dropping = Neighbour::new(verdict::SHOT);
        dropping.filter(&pair.here, Side::Input, 50);
        let site = Site::new();
        let args = ["--iface", "eth0", "--meter", meter, "--ports", "5000"];
        let mut daemon = site.start(&pair.here.ns, &args);
        daemon.counts_on(&["eth0"]);
        for _ in 0..20 {
            let address = pair.server.local_addr().expect("the address of a socket");
            pair.client.send_to(&[0; PAYLOAD], address).expect("send a datagram");
        }
        let document = daemon.stop();
        assert_eq!(document.lane("5000", "udp4"), Traffic::input(20 * WHOLE, 20));
        assert_eq!(dropping.seen(), 20);
        pair.server.set_nonblocking(true).expect("set a socket");
        let arrived = pair.server.recv(&mut [0; 100]);
        assert!(arrived.is_err(), "our verdict let a packet pass");
    }
}

#[test]
fn filters_of_others_on_their_own_qdisc_stay_with_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let sh = |words: &[&str]| pair.here.ns.sh(words);
    sh(&["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
    let (mut first, mut last) = (Neighbour::new(verdict::UNSPEC), Neighbour::new(verdict::OK));
    first.filter(&pair.here, Side::Input, 1);
    last.filter(&pair.here, Side::Input, 50);
    last.filter(&pair.here, Side::Output, 50);
    let theirs = pair.attached();
    let site = Site::new();
    let args = ["--iface", "eth0", "--meter", "tc", "--ports", "5000"];
    let mut daemon = site.start(&pair.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    assert_eq!(pair.attached().len(), theirs.len() + 2);

    pair.exchange(200);
    let document = daemon.stop();
    assert_eq!(document.lane("5000", "udp4"), both_ways(200));
    assert_eq!((first.seen(), last.seen()), (200, 400));
    assert_eq!(pair.attached(), theirs, "after our stop");
    pair.exchange(10);
    assert_eq!((first.seen(), last.seen()), (210, 420));
}

#[test]
fn a_qdisc_of_ours_goes_unless_another_program_stands_on_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let site = Site::new();
    let args = ["--iface", "eth0", "--meter", "tc", "--ports", "5000"];
    let mut daemon = site.start(&pair.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    assert_eq!(
        pair.attached(),
        ["eth0 clsact", "eth0 in filter traffic_eth_in", "eth0 out filter traffic_eth_out",]
    );
    pair.exchange(5);
    assert_eq!(daemon.stop().lane("5000", "udp4"), both_ways(5));
    leaks::nothing(&pair.here.ns, &site.pins);

    let mut daemon = site.start(&pair.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    let mut other = Neighbour::new(verdict::OK);
    other.filter(&pair.here, Side::Input, 50);
    pair.exchange(5);
    assert_eq!(daemon.stop().lane("5000", "udp4"), both_ways(5));
    assert_eq!(other.seen(), 5);
    assert_eq!(pair.attached(), ["eth0 clsact", "eth0 in filter pinned"]);
}

#[test]
fn a_filter_that_another_tool_takes_off_is_put_back_and_the_gap_is_said() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let site = Site::new();
    let args = ["--iface", "eth0", "--meter", "tc", "--ports", "5000"];
    let mut daemon = site.start(&pair.here.ns, &args);
    daemon.counts_on(&["eth0"]);
    pair.exchange(5);
    assert_eq!(daemon.fresh().text("coverage"), "complete");
    let ours = pair.attached();
    for parent in [&["clsact"][..], &["ingress", "pref", "2"]] {
        let what = if parent.len() == 1 { "qdisc" } else { "filter" };
        let words: Vec<&str> = [&["tc", what, "del", "dev", "eth0"], parent].concat();
        pair.here.ns.sh(&words);
        wait::until("our filters to be back", || (pair.attached() == ours).then_some(()));
        pair.exchange(5);
    }
    // Nor is one that is replaced taken for ours.
    let mut other = Neighbour::new(verdict::UNSPEC);
    other.replace_filter(&pair.here, Side::Input, 2, 1);
    wait::until("our filters to be back", || (pair.attached().len() == 4).then_some(()));
    daemon.says("a filter of another program stands before ours");
    pair.exchange(5);
    assert_eq!(other.seen(), 5);
    let document = daemon.stop();
    assert_eq!(document.text("coverage"), "gap");
    assert_eq!(document.lane("5000", "udp4"), both_ways(20));
    assert_eq!(pair.attached(), ["eth0 clsact", "eth0 in filter pinned"]);
    drop(pair.there);
}

#[test]
fn an_ingress_qdisc_of_others_is_named_at_tc_and_no_hindrance_at_tcx() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let sh = |words: &[&str]| pair.here.ns.sh(words);
    sh(&["tc", "qdisc", "add", "dev", "eth0", "ingress"]);
    let theirs = sh(&["tc", "qdisc", "show", "dev", "eth0"]);
    let site = Site::new();
    let args = ["--iface", "eth0", "--ports", "5000", "--meter"];
    let refused = site.run(&pair.here.ns, &[&["run"], &args[..], &["tc"]].concat());
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    for piece in ["eth0 has an ingress qdisc of another program", "remedy: --meter cgroup"] {
        assert!(refused.stderr.contains(piece), "{}", refused.stderr);
    }
    leaks::nothing(&pair.here.ns, &site.pins);

    let mut daemon = site.start(&pair.here.ns, &[&args[..], &["tcx"]].concat());
    daemon.counts_on(&["eth0"]);
    pair.exchange(5);
    assert_eq!(daemon.stop().lane("5000", "udp4"), both_ways(5));
    assert_eq!(sh(&["tc", "qdisc", "show", "dev", "eth0"]), theirs);
}
