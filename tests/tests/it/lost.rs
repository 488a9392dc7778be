//! What counts is taken off by others, under a running daemon or while none runs: it is put back, and what
//! passed in between is a gap and never said to be complete.

use std::{fs, net::UdpSocket};

use nix::sys::signal::Signal;
use traffic_tests::{
    bpf,
    cgroup::Cgroup,
    daemon::{Answer, Daemon, Site},
    device::{Device, Tun, connect, numbered_pair, veth},
    document::{Document, Traffic},
    leaks, load, need,
    netns::NetNs,
    wait,
};

/// Payload of the datagrams, and what they are with their headers.
const PAYLOAD: usize = 72;
const WHOLE: u64 = 100;

/// A host with one device and its default route, and somebody who sends to it.
struct Pair {
    here: Device,
    there: Device,
    site: Site,
}

impl Pair {
    fn new() -> Self {
        let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        host.ip(&format!("route add default via {}", there.v4));
        Self { here, there, site: Site::new() }
    }

    fn start(&self, args: &[&str]) -> Daemon {
        let args = [&["--ports", "5000"], args].concat();
        self.site.start(&self.here.ns, &args)
    }

    /// So many datagrams to port 5000, each of which arrives.
    fn send(&self, count: u64) {
        let server = load::udp(&self.here, false, 5000);
        self.send_to(&server, count);
    }

    fn send_to(&self, server: &UdpSocket, count: u64) {
        let client = load::udp(&self.there, false, 40_000);
        for _ in 0..count {
            load::datagram(&client, server, PAYLOAD);
        }
    }

    fn dump(&self) -> Document {
        Document(self.site.run(&self.here.ns, &["dump", "--json"]).json())
    }

    fn clean(self) {
        let answer = self.site.run(&self.here.ns, &["clean"]);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        leaks::nothing(&self.here.ns, &self.site.pins);
    }
}

fn input(count: u64) -> Traffic {
    Traffic::input(WHOLE * count, count)
}

#[test]
fn a_link_that_is_taken_off_under_a_daemon_is_put_back_and_the_gap_is_said() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let mut daemon = pair.start(&["--persist", "--meter", "tcx"]);
    daemon.counts_on(&["eth0"]);
    pair.send(5);
    assert_eq!(daemon.fresh().text("coverage"), "complete");
    let link = pair.site.pins.join(format!("links/tcx_{}_in", pair.here.index()));
    bpf::detach_pinned(&link).expect("take a link off");
    daemon.wait_for("the gap", |document| (document.text("coverage") == "gap").then_some(()));
    daemon.says("putting it back");
    pair.send(5);
    let last = daemon.stop();
    assert_eq!((last.group("5000"), last.text("coverage")), (input(10), "gap"));
    let events = pair.site.run(&pair.here.ns, &["export", "json", "events"]).json();
    let told = &events["events"][0];
    assert_eq!(told["kind"], "gap", "{events}");
    assert!(told.to_string().contains("our link on eth0 was taken off"), "{events}");
    // It was put back to stay.
    pair.send(5);
    assert_eq!(pair.dump().group("5000"), input(15));
    pair.clean();
}

#[test]
fn pins_that_are_removed_under_a_daemon_are_put_back_and_take_no_packet_with_them() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc", "cgroup"] {
        let (pair, cgroup) = (Pair::new(), Cgroup::new());
        let path = cgroup.path().display().to_string();
        let mut args = vec!["--persist", "--meter", meter];
        if meter == "cgroup" {
            args.extend(["--cgroup", &path]);
        }
        let server = cgroup.run(|| load::udp(&pair.here, false, 5000));
        let mut daemon = pair.start(&args);
        let epoch = daemon.wait_for("the first document", |document| {
            let counts = meter == "cgroup" || !document.devices().is_empty();
            counts.then(|| document.text("epoch").to_owned())
        });
        fs::remove_dir_all(&pair.site.pins).expect("remove the pins");
        pair.send_to(&server, 5);
        daemon.says("they are put back");
        pair.send_to(&server, 5);
        let last = daemon.stop();
        assert_eq!((last.group("5000"), last.text("coverage")), (input(10), "complete"), "{meter}");

        // They outlive the daemon as before.
        pair.send_to(&server, 5);
        let dump = pair.dump();
        assert_eq!((dump.group("5000"), dump.text("coverage")), (input(15), "complete"), "{meter}");
        let mut next = pair.start(&args);
        let document = next.wait_for("the first document", |document| Some(document.clone()));
        assert_eq!(document.text("epoch"), epoch, "{meter}");
        pair.send_to(&server, 5);
        let last = next.stop();
        assert_eq!((last.group("5000"), last.text("coverage")), (input(20), "complete"), "{meter}");
        pair.clean();
    }
}

#[test]
fn a_start_that_is_killed_before_its_maps_are_described_is_in_nobodys_way() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let pair = Pair::new();
    let mut command = pair.site.traffic(&pair.here.ns, &["run", "--persist", "--ports", "5000"]);
    command.env("TRAFFIC_FAULT", "maps-pinned");
    let _killed = Answer::of(&mut command);
    assert!(pair.site.pins.join("maps/META").exists(), "it was killed too early");
    let dump = pair.site.run(&pair.here.ns, &["dump"]);
    assert!(dump.stderr.contains("nothing is counted"), "{}", dump.stderr);
    for persist in [&[][..], &["--persist"]] {
        let mut daemon = pair.start(persist);
        daemon.counts_on(&["eth0"]);
        pair.send(3);
        let last = daemon.stop();
        assert_eq!((last.group("5000"), last.text("coverage")), (input(3), "complete"));
    }
    pair.clean();
}

#[test]
fn pins_of_another_run_in_the_place_of_ours_are_left_alone() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (first, second) = (Pair::new(), Pair::new());
    let args = ["--persist", "--meter", "tcx"];
    let mut daemon = first.start(&args);
    daemon.counts_on(&["eth0"]);
    // It sleeps while its pins go and others come.
    daemon.signal(Signal::SIGSTOP);
    fs::remove_dir_all(&first.site.pins).expect("remove the pins");
    let other = Site { state: second.site.state.clone(), pins: first.site.pins.clone() };
    let mut others = other.start(&second.here.ns, &[&["--ports", "5000"], &args[..]].concat());
    others.counts_on(&["eth0"]);
    others.stop();
    let links = || fs::read_dir(first.site.pins.join("links")).expect("the links").count();
    let before = links();
    daemon.signal(Signal::SIGCONT);
    daemon.says("they cannot be put back");
    assert_eq!(links(), before);
    first.send(5);
    assert_eq!(daemon.stop().group("5000"), input(5));
    assert_eq!(other.run(&second.here.ns, &["clean"]).code, Some(0));
    leaks::nothing(&first.here.ns, &first.site.pins);
    leaks::nothing(&second.here.ns, &first.site.pins);
}

#[test]
fn what_was_lost_while_no_daemon_ran_is_a_gap() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for (meter, what) in [("tcx", "links"), ("tc", "qdisc"), ("tcx", "device"), ("tc", "device")] {
        let mut pair = Pair::new();
        let mut daemon = pair.start(&["--persist", "--meter", meter]);
        daemon.counts_on(&["eth0"]);
        pair.send(5);
        let first = daemon.stop();
        assert_eq!((first.group("5000"), first.text("coverage")), (input(5), "complete"));
        match what {
            "links" => {
                for side in ["in", "out"] {
                    let name = format!("links/tcx_{}_{side}", pair.here.index());
                    bpf::detach_pinned(&pair.site.pins.join(name)).expect("take a link off");
                }
            }
            "qdisc" => drop(pair.here.ns.sh(&["tc", "qdisc", "del", "dev", "eth0", "clsact"])),
            _ => {
                pair.here.ns.ip("link del eth0");
                let (host, other) = (pair.here.ns.clone(), pair.there.ns.clone());
                (pair.here, pair.there) = veth((&host, "eth0"), (&other, "eth0"), 1);
                host.ip(&format!("route add default via {}", pair.there.v4));
            }
        }
        pair.send(5);
        let between = pair.dump();
        assert_eq!((between.group("5000"), between.text("coverage")), (input(5), "gap"), "{what}");
        let mut daemon = pair.start(&["--persist", "--meter", meter]);
        daemon.counts_on(&["eth0"]);
        pair.send(5);
        let last = daemon.stop();
        assert_eq!(last.text("epoch"), first.text("epoch"));
        assert_eq!(
            (last.group("5000"), last.text("coverage")),
            (input(10), "gap"),
            "{meter} {what}"
        );
        pair.clean();
    }
}

/// A device takes its links with it, and another one may get its number here.
#[test]
fn a_link_that_went_to_another_namespace_with_its_device_is_not_taken_for_one_of_this() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (mut pair, elsewhere) = (Pair::new(), NetNs::new());
    let persist = ["--persist", "--meter", "tcx"];
    let mut daemon = pair.start(&persist);
    daemon.counts_on(&["eth0"]);
    pair.send(5);
    daemon.stop();
    let index = pair.here.index();
    // With the namespace of its peer the device would go, and its links with it.
    let _peer = pair.there.ns.clone();
    pair.here.ns.ip(&format!("link set eth0 netns {}", elsewhere.path()));
    // A pair of the same numbers.
    let (host, other) = (pair.here.ns.clone(), NetNs::new().without_ipv6());
    (pair.here, pair.there) = numbered_pair((&host, "eth1"), (&other, "eth0"), 1, index);
    connect(&pair.here, &pair.there);
    host.ip(&format!("route add default via {}", pair.there.v4));
    assert_eq!(pair.here.index(), index);
    pair.send(5);
    assert_eq!(pair.dump().text("coverage"), "gap");

    let ours = ["eth0 in tcx traffic_eth_in", "eth0 out tcx traffic_eth_out"];
    assert_eq!(leaks::attached(&elsewhere), ours);
    let mut daemon = pair.start(&persist);
    daemon.counts_on(&["eth1"]);
    assert_eq!(leaks::attached(&elsewhere), Vec::<String>::new());
    pair.send(7);
    let last = daemon.stop();
    assert_eq!((last.group("5000"), last.text("coverage")), (input(12), "gap"));
    pair.clean();
}

#[test]
fn a_cgroup_that_is_made_anew_is_counted_again_and_the_gap_is_said() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    let (pair, cgroup) = (Pair::new(), Cgroup::new());
    let path = cgroup.path().display().to_string();
    let args = ["--persist", "--meter", "cgroup", "--cgroup", &path];
    let send = |count| {
        let server = cgroup.run(|| load::udp(&pair.here, false, 5000));
        pair.send_to(&server, count);
    };
    let counts = |daemon: &mut Daemon, count| {
        daemon.wait_for("the datagrams", |document| {
            (document.group("5000") == input(count)).then_some(())
        });
    };
    let mut daemon = pair.start(&args);
    daemon.wait_for("the first document", |_| Some(()));
    send(5);
    counts(&mut daemon, 5);
    // Under a daemon.
    cgroup.make_anew();
    daemon.wait_for("the gap", |document| (document.text("coverage") == "gap").then_some(()));
    daemon.fresh();
    send(5);
    counts(&mut daemon, 10);
    daemon.stop();
    assert_eq!(pair.site.run(&pair.here.ns, &["clean"]).code, Some(0));

    // While none runs.
    let daemon = pair.start(&[&args[..], &["--count", "1"]].concat()).end();
    assert_eq!(daemon.code, Some(0), "{}", daemon.stderr);
    cgroup.make_anew();
    wait::until("the links to end", || (pair.dump().text("coverage") == "gap").then_some(()));
    let mut daemon = pair.start(&args);
    daemon.wait_for("the first document", |_| Some(()));
    send(5);
    counts(&mut daemon, 5);
    assert_eq!(daemon.stop().text("coverage"), "gap");
    pair.clean();
}

#[test]
fn pins_at_another_cgroup_than_the_one_asked_for_are_refused() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    let (pair, one, other) = (Pair::new(), Cgroup::new(), Cgroup::new());
    let run = |cgroup: &Cgroup| {
        let path = cgroup.path().display().to_string();
        let args = ["run", "--persist", "--meter", "cgroup", "--cgroup", &path, "--count", "1"];
        pair.site.run(&pair.here.ns, &[&args[..], &["--json", "--ports", "5000"]].concat())
    };
    assert_eq!(run(&one).code, Some(0));
    let refused = run(&other);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("another cgroup than"), "{}", refused.stderr);
    assert!(refused.stderr.contains("remedy: `traffic clean`"), "{}", refused.stderr);
    assert_eq!(run(&one).json()["coverage"], "complete");
    pair.clean();
}

#[test]
fn a_name_in_the_place_of_a_pin_leaves_nothing_half_counted_and_no_maps_behind() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for side in ["in", "out"] {
        let pair = Pair::new();
        let (host, other) = (pair.here.ns.clone(), pair.there.ns.clone());
        let _second = veth((&host, "eth1"), (&other, "eth1"), 2);
        let held = pair.site.pins.join(format!("links/tcx_{}_{side}", pair.here.index()));
        fs::create_dir_all(&held).expect("a folder in the place of a pin");
        let args = ["--persist", "--meter", "tcx", "--iface", "eth0,eth1"];
        let mut daemon = pair.start(&args);
        daemon.counts_on(&["eth1"]);
        assert!(!leaks::attached(&host).iter().any(|line| line.starts_with("eth0")), "{side}");
        // It was asked for, and what passes it is not seen.
        pair.send(5);
        let last = daemon.stop();
        assert_eq!((last.group("5000"), last.text("coverage")), (input(0), "gap"));
        // All but that goes, and the error names it.
        let answer = pair.site.run(&host, &["clean"]);
        assert_eq!(answer.code, Some(2), "{}", answer.stdout);
        assert!(answer.stderr.contains(&held.display().to_string()), "{}", answer.stderr);
        assert_eq!(leaks::pins(&pair.site.pins), Vec::<String>::new());

        // With nothing else to count on, the start fails and leaves nothing.
        let run = ["run", "--persist", "--meter", "tcx", "--iface", "eth0", "--ports", "1"];
        assert_eq!(pair.site.run(&host, &run).code, Some(2));
        assert_eq!(leaks::pins(&pair.site.pins), Vec::<String>::new());
        fs::remove_dir(&held).expect("remove the folder again");
        let _ = fs::remove_dir(pair.site.pins.join("links"));
        let _ = fs::remove_dir(&pair.site.pins);
        leaks::nothing(&host, &pair.site.pins);
    }
}

#[test]
fn a_device_that_is_not_understood_is_left_as_it_is() {
    need!(Root, Bpf, Object, Netns, Tun, Tool("ip"), Tool("tc"));
    let (host, site) = (NetNs::new(), Site::new());
    let tun = Tun::new(&host, "tun0", 1, false);
    // ARPHRD_IEEE80211_RADIOTAP: a link type that no program of ours knows.
    tun.set_link_type(803);
    for meter in ["tc", "tcx"] {
        let run = ["run", "--meter", meter, "--iface", "tun0", "--ports", "1", "--no-ledger"];
        let refused = site.run(&host, &run);
        assert_eq!(refused.code, Some(2), "{}", refused.stdout);
        assert!(refused.stderr.contains("ARPHRD 803"), "{}", refused.stderr);
        leaks::nothing(&host, &site.pins);
    }
}

#[test]
fn a_signal_while_it_starts_leaves_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("nft"));
    for meter in ["tcx", "tc", "nft"] {
        let pair = Pair::new();
        let args = ["run", "--output", "json", "--ports", "5000", "--meter", meter];
        let mut command = pair.site.traffic(&pair.here.ns, &args);
        command.env("TRAFFIC_FAULT", "meter started");
        let ended = Daemon::spawn(command).end();
        assert_eq!(ended.code, Some(0), "{meter}: {}", ended.stderr);
        assert_eq!(pair.here.ns.sh(&["nft", "list", "tables"]), "", "{meter}");
        leaks::nothing(&pair.here.ns, &pair.site.pins);
    }
}
