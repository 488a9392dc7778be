//! Pins that the next start takes over while senders go on: at a cgroup, with other ports, after a
//! device has gone, and after a kill at any moment of a change-over.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use traffic_tests::{
    cgroup::Cgroup,
    daemon::{Daemon, Site},
    device::{Device, veth},
    document::{Document, Traffic},
    leaks,
    load::{self, DATAGRAM, Sender},
    need,
    netns::NetNs,
    wait,
};

/// What these senders have sent.
fn stop(senders: impl IntoIterator<Item = Sender>) -> Traffic {
    let sent: u64 = senders.into_iter().map(|sender| sender.stop().len() as u64).sum();
    Traffic::input(sent * DATAGRAM, sent)
}

/// Makes the pinned maps say that a version with another ABI made them. False when there are none,
/// because a change-over was cut short.
fn pretend_another_abi(site: &Site) -> bool {
    let Ok(meta) = MapData::from_pin(site.pins.join("maps/META")) else {
        return false;
    };
    let mut meta: Array<_, [u8; 80]> =
        Map::from_map_data(meta).and_then(Array::try_from).expect("META is an array");
    let mut value = meta.get(&0, 0).expect("read META");
    value[4..8].copy_from_slice(&99u32.to_ne_bytes());
    meta.set(0, value, 0).expect("write META");
    true
}

fn counting(daemon: &mut Daemon) {
    daemon.wait_for("the first document", |_| Some(()));
}

#[track_caller]
fn clean(site: &Site, ns: &NetNs) {
    let answer = site.run(ns, &["clean"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    leaks::nothing(ns, &site.pins);
}

#[test]
fn a_cgroup_goes_on_through_stop_kill_and_another_abi() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    let cgroup = Cgroup::new();
    let _sink = cgroup.run(|| load::udp(&here, false, 5000));
    let site = Site::new();
    let path = cgroup.path().display().to_string();
    let args = ["--meter", "cgroup", "--cgroup", &path, "--ports", "5000", "--persist"];
    let start = || {
        let mut daemon = site.start(&host, &args);
        counting(&mut daemon);
        daemon
    };
    let daemon = start();
    let sender = Sender::start_to(&there, (here.v4.into(), 5000));
    sender.goes_on(200);
    let epoch = daemon.stop().text("epoch").to_owned();
    sender.goes_on(200);
    start().kill();
    sender.goes_on(200);
    assert!(pretend_another_abi(&site));
    let daemon = start();
    sender.goes_on(200);
    let sent = stop([sender]);
    let last = daemon.stop();
    assert_eq!((last.text("epoch"), last.group("5000")), (epoch.as_str(), sent));
    assert_eq!(last.everything(), sent);
    clean(&site, &host);
}

/// A host with several ports that are sent to all the time.
struct Busy {
    here: Device,
    there: Device,
    senders: Vec<Sender>,
}

impl Busy {
    fn new() -> Self {
        let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
        let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
        Self { here, there, senders: Vec::new() }
    }

    fn send_to(&mut self, ports: &[u16]) {
        let senders = ports.iter().map(|port| Sender::start(&self.there, &self.here, *port));
        self.senders.extend(senders);
    }

    fn goes_on(&self) {
        self.senders.iter().for_each(|sender| sender.goes_on(100));
    }

    fn start(&self, site: &Site, meter: &str, ports: &str) -> Daemon {
        let args = ["--iface", "eth0", "--meter", meter, "--ports", ports, "--persist"];
        let mut daemon = site.start(&self.here.ns, &args);
        daemon.counts_on(&["eth0"]);
        daemon
    }
}

#[test]
fn ports_that_come_and_go_cost_the_others_nothing_and_every_packet_is_somewhere() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, mut busy) = (Site::new(), Busy::new());
        let daemon = busy.start(&site, meter, "5001/udp,5002/udp");
        busy.send_to(&[5001, 5002, 5003]);
        busy.goes_on();
        daemon.stop();
        for (ports, ends_well) in [
            ("5001/udp=first,5003/udp", true),
            ("5003/udp,5001/udp", false),
            ("5002/udp,5001/udp", true),
        ] {
            busy.goes_on();
            let daemon = busy.start(&site, meter, ports);
            busy.goes_on();
            if ends_well {
                daemon.stop();
            } else {
                daemon.kill();
            }
        }
        let mut senders = busy.senders.drain(..);
        let first = stop(senders.next());
        let others = stop(senders);
        let answer = site.run(&busy.here.ns, &["dump", "--json"]);
        let document = Document(answer.json());
        assert_eq!(document.group("5001"), first, "{meter}");
        let elsewhere = document.group("5002") + document.group("5003");
        assert_eq!(elsewhere + document.skipped("unwatched"), others, "{meter}");
        assert_eq!(document.everything(), first + others, "{meter}");
        let watched = |key: &str| document.0["ports"][key]["watched"].clone();
        assert_eq!((watched("5002"), watched("5003")), (true.into(), false.into()));
        clean(&site, &busy.here.ns);
    }
}

#[test]
fn a_device_that_went_while_nobody_ran_keeps_its_numbers_and_the_new_one_counts() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, busy) = (Site::new(), Busy::new());
        let mut sent = Traffic::default();
        for _ in 0..3 {
            let daemon = busy.start(&site, meter, "5001/udp");
            let sender = Sender::start(&busy.there, &busy.here, 5001);
            sender.goes_on(100);
            sent += stop([sender]);
            daemon.stop();
            busy.here.ns.ip("link del eth0");
            // Somebody makes it anew, with another number.
            let names = ((&busy.here.ns, "eth0"), (&busy.there.ns, "eth0"));
            veth(names.0, names.1, 1);
        }
        let daemon = busy.start(&site, meter, "5001/udp");
        let links = leaks::pins(&site.pins.join("links"));
        // Filters have no pins of their own: one name stands for both.
        assert_eq!(links.len(), if meter == "tcx" { 2 } else { 1 }, "{links:?}");
        let last = daemon.stop();
        assert_eq!(last.group("5001"), sent, "{meter}");
        clean(&site, &busy.here.ns);
    }
}

#[test]
fn pins_of_another_namespace_are_not_taken_over() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, busy, other) = (Site::new(), Busy::new(), Busy::new());
    busy.start(&site, "tcx", "5001/udp").stop();
    let before = leaks::pins(&site.pins);
    let answer = site.run(&other.here.ns, &["run", "--iface", "eth0", "--persist"]);
    assert_eq!(answer.code, Some(2), "{}", answer.stdout);
    assert!(answer.stderr.contains("count another network namespace"), "{}", answer.stderr);
    assert!(answer.stderr.contains("--pins"), "{}", answer.stderr);
    assert_eq!(leaks::attached(&other.here.ns), Vec::<String>::new());
    assert_eq!(leaks::pins(&site.pins), before);
    clean(&site, &busy.here.ns);
}

/// How many moments of a change-over are tried.
const MOMENTS: u32 = 12;

#[test]
fn a_kill_at_any_moment_of_a_change_over_loses_and_doubles_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, mut busy) = (Site::new(), Busy::new());
        let began = Instant::now();
        let daemon = busy.start(&site, meter, "5001/udp");
        let whole = began.elapsed();
        busy.send_to(&[5001]);
        busy.goes_on();
        let epoch = daemon.stop().text("epoch").to_owned();
        for moment in 1..=MOMENTS {
            pretend_another_abi(&site);
            let args = ["--iface", "eth0", "--ports", "5001/udp", "--persist"];
            let daemon = site.start(&busy.here.ns, &args);
            // Not a wait for anything: the kill is to hit another moment each time.
            thread::sleep(fraction(whole, moment));
            daemon.kill();
            busy.goes_on();
        }
        let daemon = busy.start(&site, meter, "5001/udp");
        busy.goes_on();
        let sent = stop(busy.senders.drain(..));
        let last = daemon.stop();
        assert_eq!((last.text("epoch"), last.group("5001")), (epoch.as_str(), sent), "{meter}");
        assert_eq!(last.everything(), sent, "{meter}");
        assert!(!site.pins.join("next").exists(), "{meter}");
        clean(&site, &busy.here.ns);
    }
}

fn fraction(whole: Duration, moment: u32) -> Duration {
    whole * moment / MOMENTS
}

#[test]
fn a_set_of_maps_that_was_given_up_half_made_is_no_obstacle() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, mut busy) = (Site::new(), Busy::new());
    let daemon = busy.start(&site, "tcx", "5001/udp");
    busy.send_to(&[5001]);
    busy.goes_on();
    daemon.stop();
    // As a kill leaves it that comes between making the maps and describing them.
    let next = site.pins.join("next");
    std::fs::create_dir(&next).expect("make a folder of pins");
    for (name, file) in [("META", "META"), ("COUNTERS", "COUNTERS")] {
        let map = Array::<_, [u8; 80]>::create(1, 0).expect("make a map");
        map.pin(next.join(file)).unwrap_or_else(|err| panic!("pin {name}: {err}"));
    }
    let daemon = busy.start(&site, "tcx", "5001/udp");
    busy.goes_on();
    let sent = stop(busy.senders.drain(..));
    assert_eq!(daemon.stop().group("5001"), sent);
    assert!(!next.exists());
    clean(&site, &busy.here.ns);
}

#[test]
fn a_port_that_all_processors_use_at_once_loses_nothing() {
    need!(Root, Bpf, Object, Netns, Cgroup2, Tool("ip"), Tool("tc"));
    let cgroup = Cgroup::new();
    let path = cgroup.path().display().to_string();
    for meter in [&["tcx"][..], &["tc"], &["cgroup", "--cgroup", &path]] {
        let (site, busy) = (Site::new(), Busy::new());
        let args = [&["--ports", "5001/udp", "--meter"], meter].concat();
        let args =
            if meter[0] == "cgroup" { args } else { [&args[..], &["--iface", "eth0"]].concat() };
        let mut daemon = site.start(&busy.here.ns, &args);
        daemon.wait_for("counting", |document| {
            (meter[0] == "cgroup" || document.devices() == ["eth0"]).then_some(())
        });
        let server = cgroup.run(|| load::udp(&busy.here, false, 5001));
        let senders: Vec<Sender> =
            (0..6).map(|_| Sender::start_to(&busy.there, (busy.here.v4.into(), 5001))).collect();
        // What leaves is counted into the same slot meanwhile.
        let answered = answer(&server, &busy.there, 2000);
        senders.iter().for_each(|sender| sender.goes_on(500));
        let sent = stop(senders);
        let document = daemon.stop();
        let answers = Traffic::output(answered * DATAGRAM, answered);
        assert_eq!(document.group("5001"), sent + answers, "{meter:?}");
        leaks::nothing(&busy.here.ns, &site.pins);
    }
}

/// Sends so many datagrams to somebody who does not read them.
fn answer(server: &UdpSocket, to: &Device, count: u64) -> u64 {
    let sink = load::udp(to, false, 0);
    let address = sink.local_addr().expect("the address of a socket");
    let mut sent = 0;
    wait::until("the answers", || {
        // Nothing on this side of the hook can lose one.
        server.send_to(&[0; 100], address).expect("answer");
        sent += 1;
        (sent == count).then_some(())
    });
    sent
}
