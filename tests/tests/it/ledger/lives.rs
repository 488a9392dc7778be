//! Counters that begin a new life: the proxy is started again, the host is booted, rules are flushed and pins
//! removed. What was booked stays, what is counted anew is booked once, and what nobody saw is said.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use traffic_tests::{
    daemon::{Daemon, Site},
    device::{Device, connect, pair},
    document::Traffic,
    load, need,
    netns::NetNs,
    stats_server::{Kind, StatsServer},
    wait,
};
use traffic_user::accounting::{
    reading::{Coverage, Layer},
    subject::Subject,
};

use super::{events_of, group, reader, usage_of};

pub(super) const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_085);
pub(super) const ALICE: &str = "alice@example.com";
/// Older than anything that a test waits for.
const AGE: Duration = Duration::from_secs(1000);
const PAYLOAD: usize = 100;
/// Layer-3 bytes of each datagram.
const DATAGRAM: u64 = 20 + 8 + PAYLOAD as u64;

/// A host with a proxy, and somebody who sends to it.
pub(super) struct Host {
    pub(super) site: Site,
    pub(super) ns: NetNs,
    _other: NetNs,
    here: Device,
    there: Device,
    pub(super) proxy: StatsServer,
}

impl Host {
    pub(super) fn new() -> Self {
        let (ns, other) = (NetNs::new(), NetNs::new());
        let (here, there) = pair((&ns, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        let proxy = StatsServer::inside(&ns, Kind::Xray, API);
        proxy.began(AGE);
        Self { site: Site::new(), ns, _other: other, here, there, proxy }
    }

    pub(super) fn command(&self, meter: &str) -> Command {
        let args = ["run", "--output", "json", "--interval", "20ms", "--iface", "eth0"];
        let mut command = self.site.traffic(&self.ns, &args);
        command.args(["--ports", "5000/udp", "--persist", "--meter", meter, "--api"]);
        command.arg(API.to_string());
        command
    }

    /// A daemon whose first readings are in the ledger.
    pub(super) fn start(&self, command: Command) -> Daemon {
        let mut daemon = Daemon::spawn(command);
        daemon.wait_for("an answer of the API", |document| {
            (document.0["stats"]["api"]["state"] == "ok").then_some(())
        });
        wait::until("the first poll in the ledger", || {
            let cursors = reader(&self.site).cursors().expect("ask the ledger");
            cursors.proxy.map(|_| ())
        });
        daemon
    }

    /// A proxy beside the one that the daemon knows.
    pub(super) fn another_proxy(&self) -> StatsServer {
        let other = StatsServer::inside(&self.ns, Kind::Xray, (Ipv4Addr::LOCALHOST, 0).into());
        other.began(AGE / 2);
        other
    }

    /// Datagrams that arrive at the port.
    fn arrive(&self, count: usize) {
        let server = load::udp(&self.here, false, 5000);
        let client = load::udp(&self.there, false, 40_000);
        for _ in 0..count {
            load::datagram(&client, &server, PAYLOAD);
        }
    }

    /// What is booked for the port: datagrams, and whether all of it was seen.
    fn booked(&self, layer: Layer) -> (u64, Coverage) {
        let usages = reader(&self.site).totals(&group("5000/udp")).expect("ask the ledger");
        let Some(usage) = usages.first() else { return (0, Coverage::Complete) };
        let packets = usage.traffic.input_packets;
        let all = Traffic::input(packets * DATAGRAM, packets);
        assert_eq!(usages, [usage_of(layer, all, usage.coverage)]);
        (packets, usage.coverage)
    }

    /// Payload that is booked for the user, likewise.
    pub(super) fn user(&self) -> (u64, u64, Coverage) {
        let usages =
            reader(&self.site).totals(&Subject::User(ALICE.into())).expect("ask the ledger");
        let payload = usages.iter().find(|usage| usage.layer == Layer::Payload);
        payload.map_or((0, 0, Coverage::Complete), |usage| {
            (usage.traffic.input_bytes, usage.traffic.output_bytes, usage.coverage)
        })
    }

    #[track_caller]
    pub(super) fn wait_for_user(&self, up: u64, down: u64) {
        wait::until("the user's payload in the ledger", || {
            let (input, output, _) = self.user();
            ((input, output) == (up, down)).then_some(())
        });
    }

    #[track_caller]
    fn wait_for_packets(&self, layer: Layer, packets: u64) {
        wait::until("the packets in the ledger", || {
            (self.booked(layer).0 == packets).then_some(())
        });
    }

    /// How often each of these happened.
    pub(super) fn happened<const N: usize>(&self, kinds: [&str; N]) -> [usize; N] {
        kinds.map(|kind| events_of(&self.site, &[kind]).len())
    }
}

#[test]
fn a_proxy_that_is_started_again_while_the_daemon_counts_is_booked_once_with_its_gap() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let host = Host::new();
    let daemon = host.start(host.command("tcx"));
    host.proxy.user(ALICE, 300, 70_000);
    host.wait_for_user(300, 70_000);
    assert_eq!(host.user().2, Coverage::Complete);
    host.proxy.restart();
    // More than before: the value alone would not tell it.
    host.proxy.user(ALICE, 500, 90_000);
    host.wait_for_user(800, 160_000);
    host.proxy.user(ALICE, 1, 2);
    daemon.stop();
    assert_eq!(host.user(), (801, 160_002, Coverage::Gap));
    assert_eq!(host.happened(["proxy-restarted", "gap", "counters-reset"]), [1, 1, 0]);
    let gap = &events_of(&host.site, &["gap"])[0].1;
    assert!(gap.starts_with("each counter: what was moved between "), "{gap}");
    assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
}

#[test]
fn a_proxy_that_is_started_again_while_no_daemon_runs_is_booked_from_its_start_with_the_gap() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    for killed in [false, true] {
        let host = Host::new();
        let daemon = host.start(host.command("tcx"));
        host.proxy.user(ALICE, 300, 70_000);
        host.wait_for_user(300, 70_000);
        if killed {
            daemon.kill();
        } else {
            daemon.stop();
        }
        // This is gone with the proxy: nobody can know of it.
        host.proxy.user(ALICE, 1_000_000, 2_000_000);
        host.proxy.restart();
        host.proxy.user(ALICE, 500, 90_000);
        let daemon = host.start(host.command("tcx"));
        host.wait_for_user(800, 160_000);
        host.proxy.user(ALICE, 1, 2);
        daemon.stop();
        assert_eq!(host.user(), (801, 160_002, Coverage::Gap), "killed: {killed}");
        assert_eq!(host.happened(["proxy-restarted", "gap", "counters-reset"]), [1, 1, 0]);
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn a_proxy_that_goes_on_while_no_daemon_runs_is_booked_whole_and_without_a_gap() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let host = Host::new();
    let daemon = host.start(host.command("tcx"));
    host.proxy.user(ALICE, 300, 70_000);
    host.wait_for_user(300, 70_000);
    daemon.kill();
    host.proxy.user(ALICE, 1_000_000, 2_000_000);
    host.start(host.command("tcx")).stop();
    assert_eq!(host.user(), (1_000_300, 2_070_000, Coverage::Complete));
    assert_eq!(host.happened(["proxy-restarted", "gap", "counters-reset"]), [0; 3]);
    assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
}

/// The command in a world where the kernel tells another boot.
fn after_a_boot(host: &Host, command: &Command) -> Command {
    let file = host.site.state.join("boot_id");
    fs::write(&file, "0f0e0d0c-0b0a-4908-8706-050403020100\n").expect("write a file");
    let script =
        format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", file.display());
    let mut outer = host.ns.command("unshare");
    outer.args(["--mount", "sh", "-c", &script, "sh"]);
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

#[test]
fn after_a_boot_of_the_host_all_counters_begin_anew_and_are_booked_from_zero() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("nft"), Tool("unshare"));
    for (meter, layer) in [("tcx", Layer::L3), ("nft", Layer::L3Skb)] {
        let host = Host::new();
        let daemon = host.start(host.command(meter));
        host.arrive(10);
        host.proxy.user(ALICE, 300, 70_000);
        host.wait_for_packets(layer, 10);
        host.wait_for_user(300, 70_000);
        daemon.kill();
        // What a boot takes away: pins, rules, and the proxy with its counters.
        if meter == "tcx" {
            fs::remove_dir_all(&host.site.pins).expect("remove the pins");
        } else {
            host.ns.nft("flush ruleset");
        }
        host.proxy.restart();
        host.proxy.user(ALICE, 500, 90_000);
        let daemon = host.start(after_a_boot(&host, &host.command(meter)));
        host.arrive(7);
        host.wait_for_user(800, 160_000);
        host.proxy.user(ALICE, 1, 2);
        daemon.stop();
        assert_eq!(host.booked(layer), (17, Coverage::Gap), "{meter}");
        assert_eq!(host.user(), (801, 160_002, Coverage::Gap), "{meter}");
        assert_eq!(host.happened(["restarted", "unwatched", "counters-reset"]), [1, 0, 0]);
        let told = &events_of(&host.site, &["restarted"])[0].1;
        assert!(told.starts_with(&format!("{meter}: the counters began again")), "{told}");
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn rules_that_are_flushed_under_the_daemon_are_booked_once_and_the_loss_is_said() {
    need!(Root, Netns, Tool("ip"), Tool("nft"), Tool("iptables-nft"));
    for (meter, flush) in
        [("nft", &["nft", "flush", "ruleset"][..]), ("iptables", &["iptables-nft", "-F"])]
    {
        let host = Host::new();
        let daemon = host.start(host.command(meter));
        host.arrive(10);
        host.wait_for_packets(Layer::L3Skb, 10);
        for round in 1..=2 {
            host.ns.sh(flush);
            wait::until("the rules", || {
                (events_of(&host.site, &["restarted"]).len() == round).then_some(())
            });
            host.arrive(7);
            host.wait_for_packets(Layer::L3Skb, 10 + 7 * u64::try_from(round).expect("a number"));
        }
        daemon.stop();
        assert_eq!(host.booked(Layer::L3Skb), (24, Coverage::Gap), "{meter}");
        assert_eq!(host.happened(["restarted", "unwatched", "regressed"]), [2, 0, 0], "{meter}");
        // Each thing that was lost, in both rounds.
        let losses = events_of(&host.site, &["rules-lost"]);
        assert!(losses.len() >= 2 && losses.len().is_multiple_of(2), "{meter}: {losses:?}");
        for (_, what) in losses {
            assert!(
                what.starts_with(&format!("{meter}: rules were gone and are put back: ")),
                "{what}"
            );
        }
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn pins_and_rules_that_are_taken_away_while_no_daemon_runs_are_a_gap_and_nothing_is_booked_twice() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("nft"));
    for (meter, layer) in [("tcx", Layer::L3), ("nft", Layer::L3Skb)] {
        let host = Host::new();
        host.start(host.command(meter)).stop();
        for (round, killed) in [(1, true), (2, false)] {
            let daemon = host.start(host.command(meter));
            host.arrive(10);
            host.wait_for_packets(layer, 10 * round);
            if killed {
                daemon.kill();
            } else {
                daemon.stop();
            }
            // Counted by what is taken away then: nobody can know of it.
            host.arrive(5);
            if meter == "tcx" {
                fs::remove_dir_all(&host.site.pins).expect("remove the pins");
            } else {
                host.ns.sh(&["nft", "flush", "ruleset"]);
            }
            host.arrive(5);
        }
        let daemon = host.start(host.command(meter));
        host.arrive(3);
        daemon.stop();
        assert_eq!(host.booked(layer), (23, Coverage::Gap), "{meter}");
        assert_eq!(host.happened(["restarted", "unwatched"]), [2, 0], "{meter}");
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn what_clean_takes_off_is_booked_before_and_missed_by_nobody() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("nft"), Tool("iptables-nft"));
    for (meter, layer) in [("tcx", Layer::L3), ("nft", Layer::L3Skb), ("iptables", Layer::L3Skb)] {
        let host = Host::new();
        host.start(host.command(meter)).stop();
        host.arrive(5);
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0), "{meter}");
        assert_eq!(host.booked(layer), (5, Coverage::Complete), "{meter}");
        // Nobody counts these, and everybody knows.
        host.arrive(5);
        let daemon = host.start(host.command(meter));
        host.arrive(3);
        daemon.stop();
        assert_eq!(host.booked(layer).0, 8, "{meter}");
        assert_eq!(host.happened(["cleaned", "gap", "unwatched"]), [1, 0, 0], "{meter}");
        let dump = host.site.run(&host.ns, &["dump", "--json"]).json();
        assert_eq!(dump["coverage"], "complete", "{meter}");
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn a_run_that_does_not_persist_loses_what_passes_between_two_runs_and_says_so() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("nft"), Tool("iptables-nft"));
    for (meter, layer) in [("tcx", Layer::L3), ("nft", Layer::L3Skb), ("iptables", Layer::L3Skb)] {
        let host = Host::new();
        let start = || {
            let args = ["--iface", "eth0", "--ports", "5000/udp", "--no-proxy", "--meter", meter];
            let mut daemon = host.site.start(&host.ns, &args);
            daemon.wait_for("its first document", |document| {
                (document.text("meter") == meter).then_some(())
            });
            daemon
        };
        let daemon = start();
        host.arrive(10);
        host.wait_for_packets(layer, 10);
        daemon.kill();
        host.arrive(5);
        let daemon = start();
        host.arrive(7);
        daemon.stop();
        host.arrive(5);
        let daemon = start();
        host.arrive(3);
        daemon.stop();
        // Rules outlive a kill, and the next run goes on with them; programs end with their process.
        let (booked, restarts) = if meter == "tcx" { (20, 2) } else { (25, 1) };
        assert_eq!(host.booked(layer), (booked, Coverage::Gap), "{meter}");
        assert_eq!(host.happened(["restarted", "unwatched"]), [restarts, 0], "{meter}");
    }
}
